"""One contract for all that learns from a stream of rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mhpc import IncrementalPCA, MiniBatchKMeans, OnlineCovariance
from mhpc.core.learner import OnePassLearner

D = 5


class Estimator(NamedTuple):
    make: Callable[[], Any]
    learn: Callable[[Any, Tensor], object]  # from rows [N, D]
    rows_seen: Callable[[Any], int]


ESTIMATORS = {
    "OnlineCovariance": Estimator(lambda: OnlineCovariance(D), lambda e, x: e.update(x), lambda e: e.n_samples_seen_),
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


@pytest.fixture(params=ESTIMATORS)
def estimator(request: pytest.FixtureRequest) -> Estimator:
    return ESTIMATORS[request.param]


def rows(N: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed)) + 3


def test_what_is_learned_from_stays_as_it_was(estimator: Estimator) -> None:
    e, x = estimator.make(), rows()
    before = x.clone()
    estimator.learn(e, x)
    estimator.learn(e, x)
    assert torch.equal(x, before)


def test_nothing_learned_aliases_what_was_given(estimator: Estimator) -> None:
    x, same = rows(), rows()
    fed, expected = estimator.make(), estimator.make()
    estimator.learn(fed, x)
    x.fill_(1e6)  # a caller's buffer, used again
    estimator.learn(expected, same)
    for e in (fed, expected):
        estimator.learn(e, rows(seed=1))
    for name, value in tensors(expected).items():
        torch.testing.assert_close(tensors(fed)[name], value, rtol=0, atol=0, msg=name)


def tensors(e: Any) -> dict[str, Tensor]:
    if isinstance(e, OnePassLearner):
        return e.state_dict()
    if isinstance(e, MiniBatchKMeans):
        return {"centers": e.cluster_centers_, "counts": e.counts_}
    return {"mean": e.moments_.mean, "scatter": e.moments_.scatter}


def test_rows_seen_are_counted(estimator: Estimator) -> None:
    e = estimator.make()
    estimator.learn(e, rows(40))
    estimator.learn(e, rows(7, seed=1))
    assert estimator.rows_seen(e) == 47


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_and_not_learned(estimator: Estimator, value: float) -> None:
    e, bad = estimator.make(), rows(12, seed=1)
    bad[3, 2] = value
    estimator.learn(e, rows())
    before = {name: tensor.clone() for name, tensor in tensors(e).items()}
    with pytest.raises(ValueError, match=r"12, 5\] holds? NaN or infinite values"):
        estimator.learn(e, bad)
    assert all(torch.equal(tensors(e)[name], tensor) for name, tensor in before.items())


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
    e = estimator.make()
    estimator.learn(e, rows())
    with pytest.raises(ValueError, match=came + r", expected \[.*, 5\]"):
        estimator.learn(e, x)
    assert estimator.rows_seen(e) == 40
