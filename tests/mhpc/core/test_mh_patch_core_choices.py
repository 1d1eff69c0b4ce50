import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader

from mhpc.core.mh_patch_core import (
    MHPatchCore,
    PatchCoreAggregation,
    PatchCoreAlgorithm,
    PatchCoreDistance,
    PatchCoreFeatureReduction,
)
from tests.mhpc.core.modelling import SIDE, VANILLA, defective, made, online, parts, predicted
from tests.mhpc.core.patches import assert_same

COMBINATIONS = list(
    itertools.product(PatchCoreAlgorithm, PatchCoreAggregation, PatchCoreFeatureReduction, PatchCoreDistance)
)


@pytest.mark.filterwarnings("ignore:the reservoir")
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(choice.name for choice in c))
def test_every_combination_fits_tells_defects_saves_loads_and_scores_the_same(
    combination: tuple[Any, Any, Any, Any], tmp_path: Path
) -> None:
    algorithm, aggregation, reduction, distance = combination
    model = made(algorithm=algorithm, aggregation=aggregation, feature_reduction=reduction, distance=distance)
    model.fit(parts(24).split(8))
    images = torch.cat([parts(6, seed=1), defective(6, seed=2)])
    prediction = predicted(model, images)
    assert prediction.masks.shape == (12, SIDE, SIDE)
    assert float(prediction.scores[6:].min()) > float(prediction.scores[:6].max())
    model.save(tmp_path / "model")
    loaded = MHPatchCore.load(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(predicted(loaded, images).scores, prediction.scores)
    assert torch.equal(predicted(loaded, images).masks, prediction.masks)


def test_vanillas_bank_is_the_share_of_the_patches_asked_for() -> None:
    model = made(**VANILLA, coreset_percentage=0.25).fit(parts(8))
    _, (h, w) = model.extract(parts(1))
    assert len(model.learner_.memory_) == 8 * h * w // 4


def test_vanilla_scores_are_distances_to_the_bank_the_published_way() -> None:
    model = made(**VANILLA, anomaly_score_num_nn=3).fit(parts(8))
    features, (h, w) = model.extract(defective(4))
    distances = torch.cdist(features.double(), model.learner_.memory_.double()[None]).sort(2).values[:, :, :3].mean(2)
    prediction = predicted(model, defective(4))
    torch.testing.assert_close(prediction.scores.double(), distances.amax(1), rtol=1e-4, atol=0)
    upsampled = F.interpolate(distances.reshape(4, 1, h, w), (SIDE, SIDE), mode="bilinear")[:, 0]
    expected = np.stack([gaussian_filter(anomaly_map, 4) for anomaly_map in upsampled.numpy()])
    np.testing.assert_allclose(prediction.masks, expected, rtol=1e-4)


def test_reweighted_scores_are_below_the_maximum() -> None:
    plain = made(**VANILLA).fit(parts(8))
    reweighted = made(**VANILLA, reweighting_num_nn=9).fit(parts(8))
    ratio = predicted(reweighted, defective(4)).scores / predicted(plain, defective(4)).scores
    assert bool(((ratio > 0) & (ratio < 1)).all())


def test_scores_with_top_k_are_means_of_the_largest_patches() -> None:
    model = made(**VANILLA, top_k=5).fit(parts(8))
    patches = torch.cdist(model.extract(parts(2, 1))[0], model.learner_.memory_[None]).amin(2)
    expected = patches.sort(1, descending=True).values[:, :5].mean(1)
    torch.testing.assert_close(predicted(model, parts(2, 1)).scores, expected, rtol=1e-3, atol=1e-3)


def test_a_tensor_is_fit_as_a_loader_of_it_is(trained: MHPatchCore) -> None:
    assert torch.equal(predicted(made().fit(parts(40)), parts(3)).scores, predicted(trained, parts(3)).scores)


def test_fitting_again_forgets_what_was_learned(trained: MHPatchCore) -> None:
    model = made().fit(defective(16, seed=5)).fit(parts(40))
    assert torch.equal(predicted(model, parts(3)).scores, predicted(trained, parts(3)).scores)


def test_three_passes_tell_defects_as_well() -> None:
    model = made().fit(DataLoader(list(parts(24)), batch_size=8), passes=3)  # type: ignore[arg-type]  # a list serves as a map-style dataset
    assert float(predicted(model, defective(6, 2)).scores.min()) > float(predicted(model, parts(6, 1)).scores.max())


@pytest.mark.parametrize(
    ("options", "passes", "message"),
    [
        ({}, 2, "passes is 2, expected 1 or 3"),
        ({}, 0, "passes is 0, expected 1 or 3"),
        (VANILLA, 3, "passes is 3, expected 1: VANILLA sees all images at once"),
    ],
)
def test_passes_that_do_not_exist_are_refused(options: dict[str, Any], passes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options).fit([parts(2)], passes)


def test_three_passes_over_what_is_spent_after_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the loader is a generator, spent after one pass; .* such as a DataLoader"):
        made().fit((batch for batch in parts(8).split(4)), passes=3)


def test_vanilla_does_not_learn_bit_by_bit() -> None:
    with pytest.raises(ValueError, match="call fit, or choose algorithm=ONLINE"):
        made(**VANILLA).partial_fit(parts(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset_percentage": 0}, r"Percentage value not in \(0, 1\)\."),
        ({"coreset_percentage": 1}, r"Percentage value not in \(0, 1\)\."),
        ({"pca_variance_ratio": 1.0}, r"pca_variance_ratio is 1.0, expected a share in \(0, 1\)"),
        ({"jitter": -1e-6}, "jitter is -1e-06, expected a number >= 0"),
        ({"bank_size": 0}, "bank_size is 0, expected a whole number >= 1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"anomaly_score_num_nn": 1.5}, "anomaly_score_num_nn is 1.5, expected a whole number >= 1"),
        ({"reweighting_num_nn": 1}, "with which every score is 0"),
        ({"reweighting_num_nn": 9, "top_k": 2}, "defined for the maximum: top_k=1"),
        ({"sampler": "greedy"}, "sampler is 'greedy', expected one of identity, random, greedy_coreset, approx_greedy"),
        ({"sampler": "random"}, r"for VANILLA \+ GREEDY alone; leave it out"),
        ({"algorithm": "ONLINE"}, "algorithm is 'ONLINE', expected one of PatchCoreAlgorithm.VANILLA, "),
        ({"distance": PatchCoreAlgorithm.ONLINE}, "expected one of PatchCoreDistance.EUCLIDEAN, "),
        ({"patchsize": 2}, "odd"),
    ],
)
def test_values_out_of_range_and_choices_that_rule_each_other_out_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_singular_covariance_without_jitter_is_refused_with_the_remedy() -> None:
    options = VANILLA | {"distance": PatchCoreDistance.MAHALANOBIS, "jitter": 0.0}
    with pytest.raises(ValueError, match=r"is not positive definite .* raise the jitter"):
        made(**options).fit(parts(1))  # 64 patches of 128 features


def test_more_neighbours_than_the_bank_has_are_refused() -> None:
    model = made(**VANILLA, anomaly_score_num_nn=9, coreset_percentage=0.01).fit(parts(8))
    with pytest.raises(ValueError, match="9"):
        model.predict(parts(1))


def test_a_file_that_cannot_be_written_leaves_the_one_that_was_there(
    trained: MHPatchCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(tmp_path / "model")
    before = (tmp_path / "model").read_bytes()

    def full(*_: object) -> None:
        Path(tmp_path / "model.partial").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("mhpc.core.model_file.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        trained.save(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset_percentage": None}, "Percentage value not in"),
        ({"pca_variance_ratio": "0.9"}, "pca_variance_ratio is '0.9'"),
        ({"jitter": "a"}, "jitter is 'a'"),
        ({"bank_size": True}, "bank_size is True"),
        ({"seed": None}, "seed is None"),
        ({"seed": 2**33}, r"seed is 8589934592, expected a whole number below 4294967296 \(2\*\*32\)"),
        ({"input_shape": 64}, r"input_shape is 64, expected \(H, W\)"),
        ({"input_shape": (64, 64, 3)}, "expected \\(H, W\\)"),
        ({"sampler": ["random"]}, "sampler is \\['random'\\]"),
    ],
)
def test_values_of_another_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_model_is_not_saved_where_no_file_can_be(trained: MHPatchCore, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "model"):
        with pytest.raises(ValueError, match="cannot be written: expected a file in a folder that exists"):
            trained.save(path)


def test_constant_images_are_learned_by_every_distance() -> None:
    for distance in PatchCoreDistance:
        for reduction in PatchCoreFeatureReduction:
            model = made(distance=distance, feature_reduction=reduction).fit(torch.zeros(4, 3, SIDE, SIDE))
            assert predicted(model, parts(2)).scores.isfinite().all()


def test_several_threads_may_predict(trained: MHPatchCore) -> None:
    images = [parts(1, seed=seed) for seed in range(24)]
    expected = [predicted(trained, x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: predicted(trained, x), images))
    for ours, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, alone.scores)
        torch.testing.assert_close(ours.masks, alone.masks)


@pytest.mark.parametrize("before", [0, 8])
def test_images_that_fail_after_others_of_their_call_leave_nothing_learned(before: int) -> None:
    """Images are taken through the backbone 32 at a time."""
    model, expected = made(), made()
    for each in (model, expected) if before else ():
        each.partial_fit(parts(before))
    images = parts(40, seed=1)
    images[39] = 3e38  # finite, but its features are not
    with pytest.raises(ValueError, match="NaN or infinite values; is the backbone's output sound"):
        model.partial_fit(images)
    assert_same(online(model), online(expected))
    model.partial_fit(parts(40, seed=1))
    assert online(model).images_learned_ == before + 40
