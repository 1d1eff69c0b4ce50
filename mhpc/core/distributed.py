"""One learner on many ranks: each learns its own images, and all that they learned is merged over the process group.

The group is torch.distributed's default one: gloo for tensors on the CPU, NCCL for those on GPUs. All of its ranks call
what is here, each with a learner made by the same arguments but the seed.
"""

from copy import copy

import torch
import torch.distributed as dist
from torch import Tensor

from mhpc.core.choices import PatchCoreAggregation
from mhpc.core.learner import OnePassLearner
from mhpc.core.memory_bank import MemoryBank, check_pinned
from mhpc.core.recent import RECENT, Convergence, Recent
from mhpc.linalg import Moments, nearest_index

# Of the way to the mean of what falls to it, for an anchor that the merge of ranks keeps. Where it stays, those that
# are left are the outermost of so many, and the farthest patch of tiles lies up to 5.4 % farther than for one process;
# all the way, ranks and one process differ the more in AUROC (docs/how-it-learns.md). At most half: beyond that an
# anchor may lie nearer to one that fell to another than that one does.
MERGE = 0.5


def reduce_moments(own: Moments) -> Moments:
    """Moments of the rows of all ranks, from each one's own; every rank is given the same.

    The rule of `merge_moments` for many disjoint sets at once, in two sums over the ranks r: n = sum n_r and
    m = (sum n_r m_r) / n, then S = sum S_r + n_r (m_r - m)(m_r - m)^T. Exact up to float64's rounding.
    """
    sums = torch.cat([own.n * own.mean, own.mean.new_tensor([own.n])])
    dist.all_reduce(sums)
    n = round(float(sums[-1]))  # GPU sync
    mean = sums[:-1] / max(n, 1)
    delta = own.mean - mean
    scatter = own.scatter.addr(delta, delta, alpha=own.n)
    dist.all_reduce(scatter)
    return Moments(n, mean, scatter)


def gather_rows(x: Tensor) -> list[Tensor]:
    """Rows x [N_r, ...] of every rank r, on rank 0; nothing elsewhere."""
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    lengths = [int(count) for count in counts]  # GPU sync
    as_sent = torch.uint8 if x.dtype is torch.bool else x.dtype  # gloo knows no bool
    padded = torch.zeros(max(lengths), *x.shape[1:], dtype=as_sent, device=x.device)
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths] if dist.get_rank() == 0 else None
    dist.gather(padded, parts)
    return [part[:length].to(x.dtype) for part, length in zip(parts or (), lengths, strict=False)]


def merged(learner: OnePassLearner) -> OnePassLearner | None:
    """On rank 0 a new learner that knows what those of all ranks have learned; None elsewhere. All of them stay as
    they are, and may go on.

    1. The moments are summed, exactly, and give the basis.
    2. The banks are gathered, seen through that basis, and reduced by exact greedy selection, to what a bank holds
       while it learns; an anchor that is kept and may move goes half way to the mean of what falls to it.

    Images of different ranks are different images, by different numbers (`first` of `partial_fit`). So counts and
    masses are sums; an anchor's support is, of each rank, the largest of the anchors nearest to where it is now, and
    their sum.

    Raises:
        ValueError: the bank is a reservoir, the space has no moments, or pinned anchors of all ranks would take more
            than half of what the largest bank keeps; on every rank, so that none waits for another.
    """
    if learner.aggregation is PatchCoreAggregation.NONE:
        raise ValueError("aggregation is NONE, a uniform sample: ranks are merged with GREEDY or KMEANS")
    if not learner.space.needs_moments:
        raise ValueError("EUCLIDEAN without PCA: ranks are merged in a space of their moments")
    D = _over_ranks(learner, 0 if learner.bank_ is None else learner.bank_.anchors.shape[1], dist.ReduceOp.MAX)
    pinned, kept = 0, learner.bank_size
    if isinstance(learner.bank_, MemoryBank):
        pinned, kept = int(learner.bank_.pinned.sum()), learner.bank_.kept  # GPU sync
    most = _over_ranks(learner, kept, dist.ReduceOp.MAX)
    check_pinned(_over_ranks(learner, pinned, dist.ReduceOp.SUM), most)
    learned = gather_rows(_counts(learner)[None])
    recent = {name: gather_rows(getattr(learner.recent_, name).to(learner.device)) for name in Recent.STATE}
    if D == 0:
        return _copied(learner) if learned else None
    moments = reduce_moments(_moments(learner, D))
    bank = MemoryBank(learner.bank_size, D, learner.device) if learner.bank_ is None else learner.bank_
    rows = {name: gather_rows(getattr(bank, name)) for name in MemoryBank.STATE if name != "images"}
    if not learned:
        return None
    whole = _copied(learner)
    if moments.n == learner.rows_seen_:  # nobody else has learned anything
        return whole
    counts = torch.cat(learned)
    whole.pca_.restore(moments)
    whole.rows_seen_ = whole.rows_at_refresh_ = moments.n
    whole.rows_before_ = int(counts[:, 4].sum())  # GPU sync
    whole.images_learned_, whole.images_quarantined_ = (int(n) for n in counts[:, :2].sum(0))  # GPU sync
    whole.change_ = float(counts[:, 2].max())  # GPU sync
    whole.recent_ = _recent(recent)
    whole.bank_ = _union(learner, rows, moments, float(counts[:, 3].max()))  # GPU sync
    return whole


def mean_convergence(parts: list[Convergence]) -> Convergence:
    """Of learners that share a stream: how much of what came to them was new, in the mean, and the largest change."""
    return Convergence(sum(part.outside for part in parts) / len(parts), max(part.change for part in parts))


def _over_ranks(learner: OnePassLearner, number: int, how: dist.ReduceOp.RedOpType) -> int:
    found = torch.tensor([number], device=learner.device)
    dist.all_reduce(found, how)
    return int(found)  # GPU sync


def _counts(learner: OnePassLearner) -> Tensor:
    """Images learned and set aside, change, radius, rows before, [5]; of a rank without a bank the change is none."""
    bank = learner.bank_
    known = (learner.change_, bank.radius) if bank is not None else (0.0, 0.0)
    counts = (learner.images_learned_, learner.images_quarantined_, *known, learner.rows_before_)
    return torch.tensor(counts, dtype=torch.float64, device=learner.device)


def _moments(learner: OnePassLearner, D: int) -> Moments:
    if learner.bank_ is not None:
        return learner.pca_.moments_
    zero = torch.zeros(D, D, dtype=torch.float64, device=learner.device)
    return Moments(0, zero[0].clone(), zero)


def _copied(learner: OnePassLearner) -> OnePassLearner:
    return copy(learner).load_state_dict(learner.state_dict())


def _recent(parts: dict[str, list[Tensor]]) -> Recent:
    """As many of the last images of each rank that has any, RECENT in all."""
    recent, ranks = Recent(), sum(len(part) > 0 for part in parts["scores"])
    for name in Recent.STATE:
        setattr(recent, name, torch.cat([part[-(RECENT // max(ranks, 1)) :] for part in parts[name]]).cpu())
    return recent


def _union(learner: OnePassLearner, rows: dict[str, list[Tensor]], moments: Moments, radius: float) -> MemoryBank:
    """The anchors of all ranks as one bank; `radius` is the largest of theirs, which holds where none is dropped."""
    moving = learner.aggregation is PatchCoreAggregation.KMEANS
    bank = MemoryBank(learner.bank_size, len(moments.mean), learner.device, moving)
    for name, parts in rows.items():
        setattr(bank, name, torch.cat(parts))
    order = bank.numbers.argsort()
    bank.numbers, bank.means = bank.numbers[order], bank.means[order]
    bank.refresh(learner.space.of_moments(moments))
    if sum(len(part) > 0 for part in rows["anchors"]) == 1 or len(bank) <= bank.held:
        bank.radius = radius
        return bank
    images = bank.images.split([len(part) for part in rows["anchors"]])
    bank.reduce(bank.held, MERGE)
    support = torch.zeros_like(bank.support)
    for z, of_rank in zip(images, rows["support"], strict=True):
        if len(z):
            heirs = nearest_index(z, bank.images)
            support += torch.zeros_like(support).scatter_reduce(0, heirs, of_rank, "amax")
    bank.support = support
    return bank
