"""One-pass learning: patch features in, statistics and memory bank out. What worker and MHPatchCore share."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.core.bank import Nearest, Reservoir, nothing_near
from mhpc.core.choices import PatchCoreAggregation, check_choices
from mhpc.core.memory_bank import MemoryBank
from mhpc.core.recent import Convergence, Recent
from mhpc.core.scorer import Scorer
from mhpc.core.scoring import image_scores
from mhpc.core.whitening import ZSpace, check_features, checked_share, faded_moments, sampled_moments
from mhpc.decomposition import IncrementalPCA
from mhpc.linalg import Moments, all_or_nothing, unchanged_on_error

STEP = 8  # images; fixed, so that a replay takes the same steps
GPU_STEP = 128  # on a GPU, whose time goes into launches, as many for 8 images; a replay may take others there
REFRESH_GROWTH = 1.5  # times the rows at the last refresh
FIRST_ROWS = 16_384  # of which the moments take all, whatever their share: the first bases rest on few rows


class Step(NamedTuple):
    """What became of B images: `scores` [B] before they were learned from (infinite without a bank), `learned` [B]."""

    scores: Tensor
    learned: Tensor


class OnePassLearner:
    """Learns normal patch features in one pass and bounded memory, then scores.

    Per step of at most 8 images (on a GPU 128, once the bank has been full), of P patches each:

    1. Each patch's distance to the bank is its prequential score: taken before it is learned from.
    2. An image whose score is far outside the recent ones is set aside, not learned.
    3. The moments take all rows of the others.
    4. The basis is refreshed when the rows have grown by a fixed factor.
    5. The bank grows and moves by the rows as the basis shows them.

    Args (ValueError where one is out of range):
        bank_size: K, the anchors that a reduction leaves; while it learns a quarter more (2,500 for 1,000 to 1,999).
        space: of the distances; by default whitened by PCA that keeps 0.99 of the variance.
        top_k: an image's score is the mean of its top_k largest patch scores.
        aggregation: KMEANS moves anchors, GREEDY leaves them where they are, NONE samples rows uniformly.
        seed: of that sample, and of the moments'.
        moments_share: of the rows, in (0, 1], that the moments take as if they were all; equal steps draw the same.
    """

    def __init__(
        self,
        bank_size: int = 6000,
        space: ZSpace | None = None,
        top_k: int = 1,
        device: torch.device | str = "cpu",
        aggregation: PatchCoreAggregation = PatchCoreAggregation.KMEANS,
        seed: int = 0,
        moments_share: float = 1.0,
    ) -> None:
        check_choices({"bank_size": bank_size, "top_k": top_k, "aggregation": aggregation, "seed": seed})
        self.bank_size = bank_size
        self.moments_share = checked_share(moments_share, "moments_share")
        self.space = space or ZSpace()
        self.top_k = top_k
        self.device = torch.device(device)
        self.aggregation = aggregation
        self.seed = seed
        self.pca_ = self._new_pca()
        self.bank_: MemoryBank | Reservoir | None = None
        self.rows_seen_ = self.rows_at_refresh_ = self.rows_before_ = 0
        self.images_learned_ = self.images_quarantined_ = 0
        self.change_ = 1.0
        self.recent_ = Recent()

    @property
    def images_seen_(self) -> int:
        return self.images_learned_ + self.images_quarantined_

    @property
    def convergence_(self) -> Convergence:
        return self.recent_.convergence(self.change_)

    @property
    def step(self) -> int:
        """Images that are learned at once, at most."""
        return GPU_STEP if self.device.type == "cuda" and self.bank_ and self.bank_.radius > 0 else STEP

    @property
    def takes_long_steps(self) -> bool:
        """Whether a step may be of several entries of a stream."""
        return self.step > STEP

    def _new_pca(self) -> IncrementalPCA:
        return IncrementalPCA(self.space.pca_variance_ratio if self.space.reduces else None, torch.float32, self.device)

    def partial_fit(self, features: Tensor, guard: bool = True, first: int | None = None) -> Step:
        """Learn from patch features [B, P, D], in the order given.

        Args:
            guard: whether images far outside the recent ones are set aside.
            first: number of the first image, by default the next that is free; -1 for one that a person vouches for.

        Raises:
            ValueError: not [B, P, D], another D than before, or values that are not finite or whose squares overflow.
        """
        x, steps = self.checked(features), list[Step]()
        first = max(self.images_seen_, self.bank_.free_number if self.bank_ else 0) if first is None else first
        with unchanged_on_error(*self.holders()):
            while len(x):
                part, x = x[: self.step], x[self.step :]
                steps.append(self._step(part, guard, first))
                first += len(part)
        return Step(torch.cat([s.scores for s in steps]), torch.cat([s.learned for s in steps]))

    def holders(self) -> list[object]:
        """The objects of which `partial_fit` sets attributes; it changes none of their values in place."""
        inner = (self.pca_, self.recent_, self.bank_, vars(self.pca_).get("covariance_"))
        return [self, *(each for each in inner if each is not None)]

    def freeze(self) -> Tensor:
        """Refresh the basis, reduce the bank to bank_size and judge it: what calibration and scoring use.

        Returns:
            Numbers of the pictures whose anchors are in full doubt, as if they had not been learned. They count from 0,
            since construction or since `begin_again`, where `partial_fit` was told no others.
        """
        self._refresh(exact=True)
        return self._bank().settle()

    def begin_again(self) -> None:
        """Go on from the statistics and the bank as they are, but count images from 0 and forget recent scores."""
        if isinstance(self.bank_, MemoryBank):
            self.bank_.grow_old()
        self.images_learned_ = self.images_quarantined_ = 0
        self.rows_before_, self.change_, self.recent_ = self.rows_seen_, 1.0, Recent()

    def forget(self, share: float) -> None:
        """Keep a share in (0, 1] of the weight of all that was learned: mean and covariance stay, the new counts more.

        Called before each batch it is exponential forgetting.
        """
        if checked_share(share) == 1 or self.bank_ is None:
            return
        if self.space.needs_moments:
            self.pca_.restore(faded_moments(self.pca_.moments_, share))
        for name in ("rows_seen_", "rows_at_refresh_", "rows_before_"):
            setattr(self, name, round(getattr(self, name) * share))
        self.bank_.forget(share)

    def pin(self, features: Tensor, radius: float) -> int:
        """Take patches of features [B, P, D] into the bank for good until all are within the radius; returns how many.

        Raises:
            ValueError: nothing was learned yet, pinned anchors would fill the bank, or it is a reservoir.
        """
        bank, distances = self._memory_bank(), self.scorer().score_patches(features).flatten()
        x = self.checked(features).flatten(0, 1)
        return bank.pin(x, bank.whiten(x), distances, radius)

    def unlearn(self, features: Tensor, pinned_alone: bool = False) -> int:
        """Drop the anchors that the images of features [B, P, D] alone have brought; returns how many. The moments keep
        their share of them. `pinned_alone`: those that were pinned for them, and none that was learned.

        Raises:
            ValueError: nothing was learned yet, or the bank is a reservoir.
        """
        bank = self._memory_bank()
        return sum(bank.unlearn(bank.whiten(image), pinned_alone) for image in self.checked(features))

    def scorer(self) -> Scorer:
        """What scores by the bank as it is; it shares the bank's tensors, which are replaced and never changed."""
        return self._bank().scorer(self.top_k)

    @property
    def memory_(self) -> Tensor:
        """The bank in Z-space [K, d + 1], its last coordinate for doubt: what patches are compared with."""
        return self.scorer().memory

    def whiten(self, features: Tensor) -> Tensor:
        """Features [B, P, D] in Z-space, [B, P, d + 1]."""
        return self.scorer().whiten(features)

    def score_patches(self, features: Tensor) -> Tensor:
        """Distance [B, P] of each patch of features [B, P, D] to the bank, in standard deviations (Mahalanobis)."""
        return self.scorer().score_patches(features)

    def score(self, features: Tensor) -> Tensor:
        """Image scores [B] of patch features [B, P, D]."""
        return self.scorer().score(features)

    def _step(self, features: Tensor, guard: bool, first: int) -> Step:
        B, P, D = features.shape
        x = features.reshape(B * P, D)
        known = self._nearest(x, P, self.top_k)
        scores = image_scores(known.distances.reshape(B, P), self.top_k).cpu()  # GPU sync
        learned = torch.ones(B, dtype=torch.bool)
        if self.bank_:
            learned = self.recent_.admit(scores, known.distances.reshape(B, P), self.bank_.radius, guard)
        self.images_learned_ += int(learned.sum())
        self.images_quarantined_ += int((~learned).sum())
        pictures = torch.arange(first, first + B, device=x.device).repeat_interleave(P)
        if not bool(learned.all()):  # else no row is copied
            rows = learned.to(x.device).repeat_interleave(P)
            x, known, pictures = x[rows], known.of(rows), pictures[rows]
        if len(x):
            self._learn(x, known, pictures, P)
        return Step(scores, learned)

    def _learn(self, x: Tensor, known: Nearest, pictures: Tensor, P: int) -> None:
        """Steps 3 to 5, for rows x [N, D] of images with P patches each."""
        if self.space.needs_moments:
            share = 1.0 if self.rows_seen_ < FIRST_ROWS else self.moments_share
            self.pca_.merge(self._new_pca().restore(sampled_moments(x, share, [self.seed, self.rows_seen_])))
        self.rows_seen_ += len(x)
        if self.bank_ is None:
            self.bank_ = self._new_bank(x.shape[1])
        # Growth since `begin_again`: by that of all rows, the longer the past, the later `change_` were known again.
        if self.rows_seen_ - self.rows_before_ >= REFRESH_GROWTH * (self.rows_at_refresh_ - self.rows_before_):
            self._refresh()
            known = self._nearest(x, P)
        self.bank_.learn(x, known, pictures)

    def _refresh(self, exact: bool = False) -> None:
        bank = self._bank()
        if self.space.needs_moments:
            before = bank.whitening if self.rows_at_refresh_ else None
            whitening = self.space.of_moments(self.pca_.moments_, None if exact else before)
            if before is not None:
                self.change_ = whitening.turned_from(before)
            bank.refresh(whitening)
        else:
            self.change_ = 0.0
            bank.refresh(self.space.identity(bank.anchors.shape[1]).to(self.device))
        self.rows_at_refresh_ = self.rows_seen_

    def _new_bank(self, D: int) -> MemoryBank | Reservoir:
        if self.aggregation is PatchCoreAggregation.NONE:
            return Reservoir(self.bank_size, D, self.device, self.seed)
        return MemoryBank(self.bank_size, D, self.device, self.aggregation is PatchCoreAggregation.KMEANS)

    def _nearest(self, x: Tensor, P: int, top_k: int = 0) -> Nearest:
        return nothing_near(x, x) if self.bank_ is None else self.bank_.find(x, P, top_k)

    def _bank(self) -> MemoryBank | Reservoir:
        if self.bank_ is None:
            raise ValueError("nothing was learned yet: call partial_fit with at least one image first")
        return self.bank_

    def _memory_bank(self) -> MemoryBank:
        bank = self._bank()
        if isinstance(bank, Reservoir):
            raise ValueError("aggregation is NONE, a uniform sample: single images can be pinned with GREEDY or KMEANS")
        return bank

    def checked(self, features: Tensor) -> Tensor:
        """Features [B, P, D] as they are learned from: finite float32, on the device."""
        D = None if self.bank_ is None else self.bank_.anchors.shape[1]
        return check_features(features, D).detach().to(self.device, torch.float32)

    def to(self, device: torch.device | str) -> "OnePassLearner":
        """Move all that was learned."""
        state, self.device = self.state_dict(), torch.device(device)
        return self.load_state_dict(state)

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, as tensors on the CPU; `load_state_dict` takes it back."""
        counts = [self.rows_seen_, self.rows_at_refresh_, self.images_learned_, self.images_quarantined_]
        state = {"counts": torch.tensor(counts), "change": torch.tensor(self.change_, dtype=torch.float64)}
        state |= self.recent_.state_dict()
        if self.rows_before_:  # of no first learning, nor by earlier releases
            state["rows_before"] = torch.tensor(self.rows_before_)
        if self.bank_ is not None:
            state |= self.bank_.state_dict()
            if self.space.needs_moments:
                state |= {"mean": self.pca_.moments_.mean, "scatter": self.pca_.moments_.scatter}
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Tensor]) -> "OnePassLearner":
        """Continue from another learner's `state_dict`.

        Raises:
            ValueError: a tensor is missing.
        """
        try:
            n, self.rows_at_refresh_, self.images_learned_, self.images_quarantined_ = state["counts"].tolist()
            self.rows_seen_, self.bank_, self.pca_ = n, None, self._new_pca()
            self.rows_before_ = int(state.get("rows_before", 0))
            self.recent_, self.change_ = Recent.of_state(state), float(state["change"])
            if n:
                on = {name: value.to(self.device, copy=True) for name, value in state.items()}
                if self.space.needs_moments:
                    self.pca_.restore(Moments(n, on["mean"], on["scatter"]))
                self.bank_ = self._new_bank(on["anchors"].shape[1])
                self.bank_.load_state_dict(on)
        except KeyError as error:
            raise ValueError(f"the state has no tensor {error}; it holds {', '.join(sorted(state))}") from None
        return self
