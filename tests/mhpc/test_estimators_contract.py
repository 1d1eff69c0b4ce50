"""One contract for all that learns from a stream of rows; scikit-learn's is put to the test in test_sklearn_checks."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mhpc import IncrementalPCA, MiniBatchKMeans, OnlineCovariance
from mhpc.core.learner import OnePassLearner

D = 5
F64 = torch.float64


class Estimator(NamedTuple):
    make: Callable[[], Any]
    learn: Callable[[Any, Tensor], object]  # from rows [N, D]
    rows_seen: Callable[[Any], int]


ESTIMATORS = {
    "OnlineCovariance": Estimator(
        lambda: OnlineCovariance(D, F64), lambda e, x: e.update(x), lambda e: e.n_samples_seen_
    ),
    "IncrementalPCA": Estimator(
        lambda: IncrementalPCA(0.9), lambda e, x: e.partial_fit(x), lambda e: e.n_samples_seen_
    ),
    "MiniBatchKMeans": Estimator(
        lambda: MiniBatchKMeans(4), lambda e, x: e.partial_fit(x), lambda e: int(e.counts_.sum())
    ),
    "OnePassLearner": Estimator(
        lambda: OnePassLearner(bank_size=10), lambda e, x: e.partial_fit(x[None]), lambda e: e.rows_seen_
    ),
}
EXACT = ["OnlineCovariance", "IncrementalPCA"]  # whatever the batches and their order; they merge, too
OPTIONAL = {"whitening_projection"}  # a learner's state without it says that features are compared as they are
WHOLLY_MOVABLE = [name for name in ESTIMATORS if name != "OnePassLearner"]  # whose recent scores are kept on the CPU


@pytest.fixture(params=ESTIMATORS)
def estimator(request: pytest.FixtureRequest) -> Estimator:
    return ESTIMATORS[request.param]


@pytest.fixture(params=EXACT)
def exact(request: pytest.FixtureRequest) -> Estimator:
    return ESTIMATORS[request.param]


def rows(N: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=F64) + 3


def fed(estimator: Estimator, *parts: Tensor) -> Any:
    """One that has learned from the parts in turn, empty ones left out."""
    e = estimator.make()
    for part in parts:
        if len(part):
            estimator.learn(e, part)
    return e


def assert_same_state(a: Any, b: Any, atol: float = 0.0) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=atol, msg=name)


def tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that a learned object holds, however deep."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item, seen)
    elif type(value).__module__.startswith("mhpc"):
        for item in vars(value).values():
            yield from tensors_in(item, seen)


def test_what_is_learned_from_stays_as_it_was(estimator: Estimator) -> None:
    x = rows()
    before = x.clone()
    fed(estimator, x, x)
    assert torch.equal(x, before)


def test_nothing_learned_aliases_what_was_given(estimator: Estimator) -> None:
    x, same = rows(), rows()
    e, expected = fed(estimator, x), fed(estimator, same)
    x.fill_(1e6)  # a caller's buffer, used again
    for one in (e, expected):
        estimator.learn(one, rows(seed=1))
    assert_same_state(e, expected)


def test_nothing_learned_holds_on_to_the_graph_of_what_was_given(estimator: Estimator) -> None:
    e = fed(estimator, rows().requires_grad_())
    assert not any(t.requires_grad for t in tensors_in(e, set()))


def test_rows_seen_are_counted(estimator: Estimator) -> None:
    assert estimator.rows_seen(fed(estimator, rows(40), rows(7, seed=1))) == 47


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_and_not_learned(estimator: Estimator, value: float) -> None:
    e, bad = fed(estimator, rows()), rows(12, seed=1)
    bad[3, 2] = value
    before = copy.deepcopy(e)
    with pytest.raises(ValueError, match=r"12, 5\] holds? NaN or infinite values"):
        estimator.learn(e, bad)
    assert_same_state(e, before)


@pytest.mark.parametrize(
    ("x", "came"),
    [
        (torch.zeros(9, D + 1), r"9, 6\]"),
        (torch.zeros(0, D), r"0, 5\]"),
        (torch.zeros(9), r"9\]"),
    ],
)
def test_another_shape_is_refused_with_what_came_and_what_was_expected(
    estimator: Estimator, x: Tensor, came: str
) -> None:
    e = fed(estimator, rows())
    with pytest.raises(ValueError, match=came + r", expected \[.*, 5\]"):
        estimator.learn(e, x)
    assert estimator.rows_seen(e) == 40


@pytest.mark.parametrize("N", [0, 40])
def test_one_that_took_over_a_state_learns_on_as_the_first_does(estimator: Estimator, N: int) -> None:
    first = fed(estimator, rows(N))
    second = fed(estimator, rows(23, seed=5))  # what it knew before is gone
    second.load_state_dict(first.state_dict())
    assert_same_state(second, first)
    for seed in (1, 2):
        for e in (first, second):
            estimator.learn(e, rows(30, seed))
    assert_same_state(second, first)


def test_a_state_shares_nothing_with_those_that_gave_and_took_it(estimator: Estimator) -> None:
    first, untouched = fed(estimator, rows()), fed(estimator, rows())
    state = first.state_dict()
    second = estimator.make()
    second.load_state_dict(state)
    for value in state.values():
        assert value.device.type == "cpu"
        value.zero_()
    assert_same_state(first, untouched)
    assert_same_state(second, untouched)


def test_a_state_without_one_of_its_tensors_is_refused_by_name(estimator: Estimator) -> None:
    whole = fed(estimator, rows()).state_dict()
    for name in whole.keys() - OPTIONAL:
        with pytest.raises(ValueError, match=f"the state has no tensor '{name}'"):
            estimator.make().load_state_dict({key: value for key, value in whole.items() if key != name})


@pytest.mark.parametrize("name", ["OnlineCovariance", "IncrementalPCA", "MiniBatchKMeans"])
def test_a_state_that_is_refused_leaves_what_was_learned(name: str) -> None:
    e, same = fed(ESTIMATORS[name], rows()), fed(ESTIMATORS[name], rows())
    for missing in e.state_dict():
        with pytest.raises(ValueError, match="the state has no tensor"):
            e.load_state_dict({key: torch.ones_like(v) for key, v in e.state_dict().items() if key != missing})
        assert_same_state(e, same)


@pytest.mark.parametrize("name", WHOLLY_MOVABLE)
def test_every_tensor_moves_to_another_device(name: str) -> None:
    e = fed(ESTIMATORS[name], rows())
    assert e.to("meta") is e
    assert {t.device.type for t in tensors_in(e, set())} == {"meta"}


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
)
def test_one_that_was_moved_learns_on_as_if_it_was_not(estimator: Estimator, device: str) -> None:
    here, there = fed(estimator, rows()), fed(estimator, rows())
    assert there.to(device) is there
    for e in (here, there):
        estimator.learn(e, rows(30, seed=1))  # rows from the CPU
    assert device in {t.device.type for t in tensors_in(there, set())}
    assert_same_state(there, here, atol=0.0 if device == "cpu" else 1e-4)


@pytest.mark.parametrize("sizes", [[1] * 40, [3, 1, 30, 6], [40]])
def test_statistics_do_not_depend_on_batches_or_their_order(exact: Estimator, sizes: list[int]) -> None:
    x = rows()
    shuffled = x[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    assert_same_state(fed(exact, *shuffled.split(sizes)), fed(exact, x), atol=1e-10)


@pytest.mark.parametrize(("mine", "theirs"), [(0, 20), (20, 0), (20, 1), (1, 20), (1, 1), (20, 30), (0, 1)])
def test_a_merge_equals_the_whole_and_leaves_the_other_side_alone(exact: Estimator, mine: int, theirs: int) -> None:
    x = rows(mine + theirs)
    a, b, untouched = fed(exact, x[:mine]), fed(exact, x[mine:]), fed(exact, x[mine:])
    assert a.merge(b) is a
    assert_same_state(a, fed(exact, x), atol=1e-10)
    exact.learn(a, rows(9, seed=1))
    for t in tensors_in(a, set()):
        t.zero_()
    assert_same_state(b, untouched)


def test_two_that_saw_nothing_merge_to_one_that_saw_nothing(exact: Estimator) -> None:
    assert exact.rows_seen(exact.make().merge(exact.make())) == 0


def test_one_that_saw_other_features_is_refused_and_nothing_learned() -> None:
    other = torch.zeros(3, D + 1, dtype=F64)
    for e, wider in (
        (fed(ESTIMATORS["OnlineCovariance"], rows()), OnlineCovariance(D + 1, F64).update(other)),
        (fed(ESTIMATORS["IncrementalPCA"], rows()), IncrementalPCA(0.9).partial_fit(other)),
    ):
        with pytest.raises(ValueError, match="other has 6 features, expected 5"):
            e.merge(wider)
        assert e.n_samples_seen_ == 40


def test_the_order_of_rows_within_a_batch_does_not_matter_to_kmeans() -> None:
    x, start = rows(), rows(4, seed=1)
    turned = MiniBatchKMeans(4, init=start).partial_fit(x.flip(0))
    assert_same_state(turned, MiniBatchKMeans(4, init=start).partial_fit(x), atol=1e-12)


def test_how_rows_are_batched_matters_to_kmeans_only_where_it_changes_their_nearest_centers() -> None:
    start = 100 * torch.eye(4, D, dtype=F64)  # so far apart that no row's nearest centre ever changes
    x = start.repeat(10, 1) + rows()
    whole = MiniBatchKMeans(4, init=start).partial_fit(x)
    for sizes in ([1] * 40, [3, 1, 30, 6]):
        split = MiniBatchKMeans(4, init=start)
        for part in x.flip(0).split(sizes):
            split.partial_fit(part)
        assert_same_state(split, whole, atol=1e-10)
    near = rows(4, seed=1)
    one, two = MiniBatchKMeans(4, init=near).partial_fit(rows()), MiniBatchKMeans(4, init=near)
    for part in rows().split(5):
        two.partial_fit(part)
    assert not torch.allclose(one.cluster_centers_, two.cluster_centers_, atol=1e-3)  # else this shows nothing
    assert float(two.counts_.sum()) == float(one.counts_.sum()) == 40
