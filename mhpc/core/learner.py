"""One-pass learning: patch features in, statistics and memory bank out. What worker and MHPatchCore share."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.core.calibration import outlier_limit
from mhpc.core.choices import PatchCoreAggregation
from mhpc.core.memory_bank import MemoryBank, Reservoir
from mhpc.core.scoring import image_scores
from mhpc.core.whitening import Whitening, ZSpace, check_features
from mhpc.decomposition import IncrementalPCA
from mhpc.linalg import Moments
from mhpc.mahalanobis import OnlineCovariance

STEP = 8  # images; fixed, so that a replay takes the same steps
REFRESH_GROWTH = 1.5  # times the rows at the last refresh
RECENT = 128  # images whose prequential scores the guard compares with
GUARD_AFTER = 32  # scores without which it does not judge
GUARD_SHARE = 0.1  # of the recent images, at most so many are set aside: a true change must be learned in the end


class Step(NamedTuple):
    """What became of B images: `scores` [B] before they were learned from (infinite without a bank), `learned` [B]."""

    scores: Tensor
    learned: Tensor


class Nearest(NamedTuple):
    """Whitened rows z [N, d], their distance [N] to the nearest anchor, and its index, labels [N]."""

    z: Tensor
    distances: Tensor
    labels: Tensor


class OnePassLearner:
    """Learns normal patch features in one pass and bounded memory, then scores.

    Per step of at most 8 images, of P patches each:

    1. Each patch's distance to the bank is its prequential score: taken before it is learned from.
    2. An image whose score is far outside the recent ones is set aside, not learned.
    3. The moments take all rows of the others.
    4. The basis is refreshed when the rows have grown by a fixed factor.
    5. The bank grows and moves by the rows as the basis shows them.

    Args:
        bank_size: K, the anchors that the bank is reduced to; while it learns it holds up to a quarter more.
        space: of the distances; by default whitened by PCA that keeps 0.99 of the variance.
        top_k: an image's score is the mean of its top_k largest patch scores.
        aggregation: KMEANS moves anchors, GREEDY leaves them where they are, NONE samples rows uniformly.
        seed: of that sample.
    """

    def __init__(
        self,
        bank_size: int = 6000,
        space: ZSpace | None = None,
        top_k: int = 1,
        device: torch.device | str = "cpu",
        aggregation: PatchCoreAggregation = PatchCoreAggregation.KMEANS,
        seed: int = 0,
    ) -> None:
        self.bank_size = bank_size
        self.space = space or ZSpace()
        self.top_k = top_k
        self.device = torch.device(device)
        self.aggregation = aggregation
        self.seed = seed
        self.pca_ = self._new_pca()
        self.bank_: MemoryBank | Reservoir | None = None
        self.rows_seen_ = 0
        self.rows_at_refresh_ = 0
        self.images_learned_ = 0
        self.images_quarantined_ = 0
        # of the last RECENT images, oldest first
        self.recent_scores_ = torch.empty(0)
        self.recent_quarantined_ = torch.empty(0, dtype=torch.bool)

    @property
    def images_seen_(self) -> int:
        return self.images_learned_ + self.images_quarantined_

    def _new_pca(self) -> IncrementalPCA:
        return IncrementalPCA(self.space.pca_variance_ratio if self.space.reduces else None, device=self.device)

    def partial_fit(self, features: Tensor) -> Step:
        """Learn from patch features [B, P, D], in the order given.

        Raises:
            ValueError: not [B, P, D], another D than before, or values that are not finite.
        """
        steps = [self._step(part) for part in self._checked(features).split(STEP)]
        return Step(torch.cat([s.scores for s in steps]), torch.cat([s.learned for s in steps]))

    def fit_three_passes(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Learn from features [B, P, D] that can be gone through again and again, with a basis that stands still.

        1. IncrementalPCA.
        2. OnlineCovariance of the projected rows, and its Cholesky factor.
        3. The bank, in the fixed Z-space, reduced to bank_size.

        A pass is left out where the space has no use for it: EUCLIDEAN needs no second, and without PCA the first
        finds the covariance already. No image is set aside.
        """
        for features in batches() if self.space.needs_moments else ():
            self.pca_.partial_fit(self._checked(features).flatten(0, 1))
        if self.space.reduces and self.space.whitens:
            projected = OnlineCovariance(self.pca_.n_components_, device=self.device)
            for features in batches():
                projected.update(self.pca_.transform(self._checked(features).flatten(0, 1)))
            if projected.n_samples_seen_ == 0:
                raise ValueError("the second pass gave no patches: the loader cannot be gone through again")
            whitening = self.space.of_projected(self.pca_, projected.moments_)
        elif self.space.needs_moments:
            whitening = self.space.of_moments(self.pca_.moments_)
        else:
            whitening = None
        for features in batches():
            for part in self._checked(features).split(STEP):
                self._fill_bank(part, whitening)
        if self.space.needs_moments and self.rows_seen_ != self.pca_.n_samples_seen_:
            raise ValueError(
                f"the last pass gave {self.rows_seen_} patches, the first {self.pca_.n_samples_seen_}: the loader "
                "cannot be gone through again, or is another each time"
            )
        self.rows_at_refresh_ = self.rows_seen_
        self._bank().reduce()

    def _fill_bank(self, features: Tensor, whitening: Whitening | None) -> None:
        """The third pass, for features [B, P, D]."""
        B, P, D = features.shape
        x = features.reshape(B * P, D)
        if self.bank_ is None:
            self.bank_ = self._new_bank(D)
            self.bank_.refresh(whitening or self.space.identity(D).to(self.device))
        self.bank_.learn(x, *self._nearest(x), torch.arange(B, device=x.device).repeat_interleave(P))
        self.rows_seen_ += B * P
        self.images_learned_ += B

    def freeze(self) -> None:
        """Refresh the basis and reduce the bank to bank_size: what calibration and scoring use."""
        self._refresh()
        self._bank().reduce()

    @property
    def memory_(self) -> Tensor:
        """The bank in Z-space [K, d]: what patches are compared with."""
        return self._bank().images

    def whiten(self, features: Tensor) -> Tensor:
        """Features [B, P, D] in Z-space, [B, P, d]."""
        return self._bank().whiten(self._checked(features))

    def score_patches(self, features: Tensor) -> Tensor:
        """Distance [B, P] of each patch of features [B, P, D] to the bank, in standard deviations (Mahalanobis)."""
        z = self.whiten(features)
        B, P, d = z.shape
        return self._bank().nearest(z.reshape(B * P, d))[0].reshape(B, P)

    def score(self, features: Tensor) -> Tensor:
        """Image scores [B] of patch features [B, P, D]."""
        return image_scores(self.score_patches(features), self.top_k)

    def _step(self, features: Tensor) -> Step:
        B, P, D = features.shape
        x = features.reshape(B * P, D)
        known = self._nearest(x)
        scores = image_scores(known.distances.reshape(B, P), self.top_k).cpu()  # GPU sync
        learned = self._guard(scores) if self.bank_ else torch.ones(B, dtype=torch.bool)
        self.images_learned_ += int(learned.sum())
        self.images_quarantined_ += int((~learned).sum())
        if bool(learned.any()):
            rows = learned.to(x.device).repeat_interleave(P)
            pictures = torch.arange(B, device=x.device).repeat_interleave(P)[rows]
            self._learn(x[rows], Nearest(*(t[rows] for t in known)), pictures)
        return Step(scores, learned)

    def _guard(self, scores: Tensor) -> Tensor:
        """Which images [B] to learn from: not those far outside the recent scores, within a bounded share."""
        learned = torch.ones(len(scores), dtype=torch.bool)
        if len(self.recent_scores_) >= GUARD_AFTER:
            far = scores > outlier_limit(self.recent_scores_.numpy())
            room = int(GUARD_SHARE * RECENT) - int(self.recent_quarantined_.sum())
            learned = ~(far & (far.cumsum(0) <= room))
        self.recent_scores_ = torch.cat([self.recent_scores_, scores])[-RECENT:]
        self.recent_quarantined_ = torch.cat([self.recent_quarantined_, ~learned])[-RECENT:]
        return learned

    def _learn(self, x: Tensor, known: Nearest, pictures: Tensor) -> None:
        """Steps 3 to 5, for rows x [N, D]."""
        if self.space.needs_moments:
            self.pca_.partial_fit(x)
        self.rows_seen_ += len(x)
        if self.bank_ is None:
            self.bank_ = self._new_bank(x.shape[1])
        if self.rows_seen_ >= REFRESH_GROWTH * self.rows_at_refresh_:
            self._refresh()
            known = self._nearest(x)
        self.bank_.learn(x, known.z, known.distances, known.labels, pictures)

    def _refresh(self) -> None:
        bank = self._bank()
        if self.space.needs_moments:
            bank.refresh(self.space.of_moments(self.pca_.moments_))
        else:
            bank.refresh(self.space.identity(bank.anchors.shape[1]).to(self.device))
        self.rows_at_refresh_ = self.rows_seen_

    def _new_bank(self, D: int) -> MemoryBank | Reservoir:
        if self.aggregation is PatchCoreAggregation.NONE:
            return Reservoir(self.bank_size, D, self.device, self.seed)
        moving = self.aggregation is PatchCoreAggregation.KMEANS
        return MemoryBank(self.bank_size, D, self.device, moving)

    def _nearest(self, x: Tensor) -> Nearest:
        """x [N, D] as the bank sees it; infinitely far from a bank that is empty."""
        if self.bank_ is None or not len(self.bank_):
            far = torch.full((len(x),), torch.inf, device=x.device)
            z = x if self.bank_ is None else self.bank_.whiten(x)
            return Nearest(z, far, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        z = self.bank_.whiten(x)
        return Nearest(z, *self.bank_.nearest(z))

    def _bank(self) -> MemoryBank | Reservoir:
        if self.bank_ is None:
            raise ValueError("nothing was learned yet: call partial_fit with at least one image first")
        return self.bank_

    def _checked(self, features: Tensor) -> Tensor:
        D = None if self.bank_ is None else self.bank_.anchors.shape[1]
        x = check_features(features, D).detach().to(self.device, torch.float32)
        if self.bank_ is None and len(x) * x.shape[1] < 2:
            raise ValueError(f"features {list(x.shape)} hold a single patch, expected at least 2 to begin with")
        return x

    def to(self, device: torch.device | str) -> "OnePassLearner":
        """Move all that was learned."""
        state, self.device = self.state_dict(), torch.device(device)
        self.pca_ = self._new_pca()
        return self.load_state_dict(state)

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, as tensors on the CPU; `load_state_dict` takes it back."""
        counts = [self.rows_seen_, self.rows_at_refresh_, self.images_learned_, self.images_quarantined_]
        state = {
            "counts": torch.tensor(counts),
            "recent_scores": self.recent_scores_,
            "recent_quarantined": self.recent_quarantined_,
        }
        if self.bank_ is not None:
            state |= self.bank_.state_dict()
            if self.space.needs_moments:
                state |= {"mean": self.pca_.moments_.mean, "scatter": self.pca_.moments_.scatter}
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> "OnePassLearner":
        """Continue from another learner's `state_dict`.

        Raises:
            ValueError: a tensor is missing.
        """
        try:
            n, self.rows_at_refresh_, self.images_learned_, self.images_quarantined_ = state["counts"].tolist()
            self.rows_seen_, self.bank_, self.pca_ = n, None, self._new_pca()
            self.recent_scores_ = state["recent_scores"].clone()
            self.recent_quarantined_ = state["recent_quarantined"].clone()
            if n:
                on = {name: value.to(self.device, copy=True) for name, value in state.items()}
                if self.space.needs_moments:
                    self.pca_.restore(Moments(n, on["mean"], on["scatter"]))
                bank = self._new_bank(on["anchors"].shape[1])
                bank.load_state_dict(on)
                self.bank_ = bank
        except KeyError as error:
            raise ValueError(f"the state has no tensor {error}; it holds {', '.join(sorted(state))}") from None
        return self
