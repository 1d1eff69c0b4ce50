"""scikit-learn's own checks of an estimator, and its conventions, for those that it can put to the test.

OnlineCovariance takes no part: it is told D, `update`s and has no `fit`. Neither does OnePassLearner: it learns from
pictures, [B, P, D], which scikit-learn's checks do not make.
"""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from mhpc import IncrementalPCA, MiniBatchKMeans
from tests.mhpc.test_estimators_contract import F64, D, assert_same_state, rows

# Skipped by themselves: check_array_api_input, which switches on scikit-learn's own dispatch (tensors are taken without
# it) by SCIPY_ARRAY_API, and check_sample_weights_pandas_series where pandas is not installed.
DRAWN = {
    "check_sample_weight_equivalence_on_dense_data": "centres begin at rows that are drawn, and of rows given twice "
    "others are drawn than of rows that weigh twice: equal in distribution alone; scikit-learn's own is excused, too"
}


def does_not_apply(estimator: Any) -> dict[str, str]:
    return DRAWN if getattr(estimator, "init", None) in ("k-means++", "random") else {}


# 3 clusters, not the default's 8: check_sample_weights_shape and check_sample_weights_not_overwritten give rows of
# which 4 are distinct, and init="k-center" refuses more clusters than that (k-means++ repeats a row).
@parametrize_with_checks(  # type: ignore[untyped-decorator]  # scikit-learn publishes no types
    [
        IncrementalPCA(),
        IncrementalPCA(2),
        MiniBatchKMeans(3),
        MiniBatchKMeans(3, init="k-means++"),
        MiniBatchKMeans(3, init="random"),
    ],
    expected_failed_checks=does_not_apply,
)
def test_it_passes_scikit_learns_own_check(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("e", "methods"),
    [
        (IncrementalPCA(3), ["transform", "whiten", "fit_transform"]),
        (MiniBatchKMeans(3), ["transform", "predict", "fit_transform", "fit_predict"]),
    ],
)
def test_arrays_give_arrays_and_tensors_give_tensors_of_the_same_values_and_type(e: Any, methods: list[str]) -> None:
    for dtype in (torch.float32, F64):
        x = rows().to(dtype)
        for name in methods:
            from_tensor = getattr(clone(e).fit(x), name)(x)
            from_array = getattr(clone(e).fit(x.numpy()), name)(x.numpy())
            assert isinstance(from_tensor, Tensor)
            assert isinstance(from_array, np.ndarray)
            np.testing.assert_array_equal(from_tensor, from_array)
            assert from_tensor.dtype == (dtype if from_tensor.is_floating_point() else torch.int64)


@pytest.mark.parametrize("e", [IncrementalPCA(3, F64, "cpu"), MiniBatchKMeans(3, init=rows(3)), MiniBatchKMeans(4)])
def test_a_clone_has_the_parameters_and_nothing_learned(e: Any) -> None:
    twin = clone(e.fit(rows()))
    assert set(vars(twin)) == set(e.get_params())
    assert repr(twin) == repr(e)
    with pytest.raises(ValueError, match=r"has seen (0 rows|no batch)"):
        twin.transform(rows())


@pytest.mark.parametrize("e", [IncrementalPCA(3), MiniBatchKMeans(4)])
def test_fit_forgets_what_was_learned_before(e: Any) -> None:
    again = clone(e).fit(rows(30, seed=3).repeat(1, 2)).fit(rows())
    assert_same_state(again, clone(e).fit(rows()))
    assert again.n_features_in_ == D


@pytest.mark.parametrize("e", [IncrementalPCA(3), MiniBatchKMeans(4)])
def test_a_pickled_one_learns_on(e: Any) -> None:
    first = clone(e).fit(rows())
    second = pickle.loads(pickle.dumps(first))  # noqa: S301 - our own bytes
    for one in (first, second):
        one.partial_fit(rows(seed=1))
    assert_same_state(first, second)


@pytest.mark.parametrize("e", [IncrementalPCA(6), MiniBatchKMeans(6)])
@pytest.mark.parametrize("refused", ["fit", "partial_fit"])
def test_a_first_call_that_is_refused_leaves_nothing_learned(e: Any, refused: str) -> None:
    few, one = rows(5).numpy(), clone(e)  # nor features enough for 6 components
    with pytest.raises(ValueError, match="expected"):
        getattr(one, refused)(few)
    assert set(vars(one)) == set(one.get_params())


@pytest.mark.parametrize("e", [IncrementalPCA(5), MiniBatchKMeans(5)])
def test_a_fit_that_is_refused_leaves_the_old_model_as_it_was(e: Any) -> None:
    one = clone(e).fit(rows())
    before, told = dict(vars(one)), one.transform(rows())
    few = torch.ones(4, D + 2)
    for bad, text in ((few, "4 rows"), (few.numpy(), "4 rows"), (torch.full((9, D + 2), torch.nan), "holds NaN")):
        with pytest.raises(ValueError, match=text):
            one.fit(bad)
        assert vars(one).keys() == before.keys()
        assert all(vars(one)[name] is value for name, value in before.items())
    assert one.n_features_in_ == D
    assert torch.equal(one.transform(rows()), told)
    assert one.partial_fit(rows(seed=1)) is one


def test_a_batch_whose_weights_are_refused_leaves_the_centers_as_they_were() -> None:
    one, twin = (MiniBatchKMeans(4).fit(rows()) for _ in range(2))
    with pytest.raises(ValueError, match="sample_weight has shape"):
        one.partial_fit(rows(), sample_weight=torch.ones(7))
    assert_same_state(one, twin)


@pytest.mark.parametrize("e", [IncrementalPCA(3), MiniBatchKMeans(4)])
def test_the_names_of_features_end_with_the_model_that_learned_them(e: Any) -> None:
    pandas: Any = pytest.importorskip("pandas", reason="no pandas: pip install -e .[bench]")
    table = pandas.DataFrame(rows().numpy(), columns=list("abcde"))
    state = clone(e).fit(rows()).state_dict()
    anew: list[Callable[[Any], Any]] = [lambda one: one.fit(rows()[:, 1:]), lambda one: one.load_state_dict(state)]
    for learn_anew in anew:
        one = clone(e).fit(table)
        assert one.partial_fit(rows()).feature_names_in_.tolist() == list("abcde")  # the features are the same
        assert not hasattr(learn_anew(one), "feature_names_in_")
    assert not hasattr(IncrementalPCA(3).fit(table).restore(IncrementalPCA().fit(rows()).moments_), "feature_names_in_")


def test_they_make_a_pipeline_that_names_its_features() -> None:
    pipeline = make_pipeline(IncrementalPCA(3), MiniBatchKMeans(2))
    assert pipeline.fit_transform(rows().numpy()).shape == (40, 2)
    assert pipeline.get_feature_names_out().tolist() == ["minibatchkmeans0", "minibatchkmeans1"]
    assert pipeline[:-1].get_feature_names_out().tolist() == [f"incrementalpca{i}" for i in range(3)]
