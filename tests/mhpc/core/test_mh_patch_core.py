import itertools
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mhpc.core.backbones import BackboneName, load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.mh_patch_core import (
    LabelledPrediction,
    MHPatchCore,
    PatchCoreAggregation,
    PatchCoreAlgorithm,
    PatchCoreDistance,
    PatchCoreFeatureReduction,
    Prediction,
)

SIDE = 64


def made(**options: Any) -> MHPatchCore:
    small: dict[str, Any] = {"input_shape": (SIDE, SIDE), "embedding_layers": ["layer2"], "bank_size": 100}
    return MHPatchCore(**{"backbone": BackboneName.resnet18, "weights": "random:0", **small, **options})


def parts(B: int, seed: int = 0) -> Tensor:
    """Pictures [B, 3, 64, 64] of one and the same part, with some noise."""
    ramp = torch.linspace(-1, 1, SIDE)
    part = torch.stack([ramp[:, None] + ramp, ramp[:, None] * ramp, (8 * ramp).sin().expand(SIDE, SIDE)])
    return part + 0.05 * torch.randn(B, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def defective(B: int, seed: int = 0) -> Tensor:
    """The same, each with a dark square from (40, 8) to (52, 20)."""
    images = parts(B, seed)
    images[:, :, 40:52, 8:20] = -2
    return images


@pytest.fixture(scope="module")
def trained() -> MHPatchCore:
    """Not to be taught any more by a test."""
    return made().fit(parts(40).split(8))


def online(model: MHPatchCore) -> OnePassLearner:
    assert isinstance(model.learner_, OnePassLearner)
    return model.learner_


def predicted(model: MHPatchCore, images: Tensor) -> Prediction:
    prediction = model.predict(images)
    assert isinstance(prediction, Prediction)
    return prediction


def test_a_prediction_is_a_score_and_a_map_per_image(trained: MHPatchCore) -> None:
    prediction = predicted(trained, parts(5, seed=1))
    assert prediction.scores.shape == (5,)
    assert prediction.masks.shape == (5, SIDE, SIDE)
    assert prediction.scores.device.type == prediction.masks.device.type == "cpu"


def test_defects_score_higher_and_are_hottest_where_they_lie(trained: MHPatchCore) -> None:
    good, bad = predicted(trained, parts(10, seed=1)), predicted(trained, defective(10, seed=2))
    assert float(bad.scores.min()) > float(good.scores.max())
    for hottest in bad.masks.flatten(1).argmax(1).tolist():
        row, column = divmod(hottest, SIDE)
        assert 36 <= row < 56
        assert 4 <= column < 24


def test_scores_do_not_depend_on_the_batch(trained: MHPatchCore) -> None:
    images = torch.cat([parts(4, seed=1), defective(3, seed=2)])
    together = predicted(trained, images)
    alone = [predicted(trained, image) for image in images.split(1)]
    torch.testing.assert_close(torch.cat([p.scores for p in alone]), together.scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.cat([p.masks for p in alone]), together.masks, rtol=1e-3, atol=1e-3)


def test_fit_is_partial_fit_on_every_batch_then_freezing(trained: MHPatchCore) -> None:
    learning = made()
    for batch in parts(40).split(8):
        learning.partial_fit(batch)
    assert online(learning).images_learned_ == 40
    online(learning).freeze()
    assert len(trained.learner_.memory_) == 100
    assert torch.equal(predicted(learning, parts(3, seed=1)).scores, predicted(trained, parts(3, seed=1)).scores)


def test_a_loader_of_maps_gives_the_labels_and_masks_it_carries(trained: MHPatchCore) -> None:
    images = torch.cat([parts(3, seed=1), defective(2, seed=2)])
    masks = (torch.arange(5) > 2)[:, None, None].expand(5, SIDE, SIDE)
    items = [{"image": image, "is_anomaly": i > 2, "mask": masks[i]} for i, image in enumerate(images)]
    loader: Any = DataLoader(items, batch_size=2)  # type: ignore[arg-type]  # a list serves as a map-style dataset
    scores, maps, labels_gt, masks_gt = trained.predict(loader)  # type: ignore[misc]  # four values, from a loader
    expected = predicted(trained, images)
    torch.testing.assert_close(scores, expected.scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(maps, expected.masks, rtol=1e-3, atol=1e-3)
    assert labels_gt == [0, 0, 0, 1, 1]
    assert torch.equal(torch.stack(masks_gt), masks)


def test_a_loader_of_tensors_carries_no_truth(trained: MHPatchCore) -> None:
    prediction = trained.predict(iter(parts(5, seed=1).split(2)))
    assert isinstance(prediction, LabelledPrediction)
    assert prediction.scores.shape == (5,)
    assert prediction.labels_gt == prediction.masks_gt == []


def test_fit_takes_a_loader_of_maps(trained: MHPatchCore) -> None:
    model = made().fit({"image": batch, "is_anomaly": torch.zeros(8)} for batch in parts(40).split(8))
    assert torch.equal(predicted(model, parts(3)).scores, predicted(trained, parts(3)).scores)


def test_a_model_loaded_again_gives_the_same_scores_and_goes_on_learning(tmp_path: Path) -> None:
    model = made(top_k=3, pca_variance_ratio=0.95, bank_size=80)
    model.partial_fit(parts(16))
    model.save(tmp_path / "model.safetensors")
    loaded = MHPatchCore.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    for _ in range(2):
        before, after = (predicted(m, defective(4, seed=1)) for m in (model, loaded))
        assert torch.equal(before.scores, after.scores)
        assert torch.equal(before.masks, after.masks)
        for m in (model, loaded):
            m.partial_fit(parts(16, seed=2))


def test_the_default_layers_are_patchcores() -> None:
    model = MHPatchCore(BackboneName.resnet18, weights="random:0", input_shape=(SIDE, SIDE)).partial_fit(parts(2))
    assert online(model).pca_.moments_.mean.shape == (128 + 256,)  # layer2 and layer3
    assert predicted(model, parts(1)).masks.shape == (1, SIDE, SIDE)


def test_a_model_that_has_learned_nothing_can_be_saved_and_loaded(tmp_path: Path) -> None:
    made().save(tmp_path / "model.safetensors")
    loaded = MHPatchCore.load(tmp_path / "model.safetensors")
    assert online(loaded).images_seen_ == 0
    loaded.partial_fit(parts(8))


def test_a_model_of_ones_own_module_is_loaded_with_that_module(tmp_path: Path) -> None:
    own = load_backbone("tiny", "random:4")
    model = made(backbone=own, weights=None).partial_fit(parts(8))
    model.save(tmp_path / "model.safetensors")
    loaded = MHPatchCore.load(tmp_path / "model.safetensors", backbone=load_backbone("tiny", "random:4"))
    assert torch.equal(predicted(loaded, parts(3)).scores, predicted(model, parts(3)).scores)
    with pytest.raises(ValueError, match=r"made with a module, .*TinyBackbone; give that as backbone="):
        MHPatchCore.load(tmp_path / "model.safetensors")


def test_a_model_is_not_loaded_with_another_backbone(trained: MHPatchCore, tmp_path: Path) -> None:
    trained.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"was learned with a backbone of hash \w{64}, the one given has \w{64}"):
        MHPatchCore.load(tmp_path / "model.safetensors", backbone=load_backbone("resnet18", "random:1"))


def test_the_file_names_the_backbone_and_does_not_contain_it(trained: MHPatchCore, tmp_path: Path) -> None:
    trained.save(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert '"backbone": "resnet18"' in file.metadata()["mhpc"]
        assert set(file.keys()) == trained.learner_.state_dict().keys()


def not_there(path: Path) -> None:
    assert not path.exists()


def text(path: Path) -> None:
    path.write_text("no model")


def of_another_kind(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)


def truncated(path: Path) -> None:
    made().partial_fit(parts(8)).save(path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("write", [not_there, text, of_another_kind, truncated])
def test_a_file_that_is_no_model_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a model that MHPatchCore\.save wrote"):
        MHPatchCore.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("shape", [(2, 3, 32, 64), (3, 64, 64), (2, 1, 64, 64), (2, 64, 64, 3), (0, 3, 64, 64)])
def test_images_of_another_shape_are_refused(trained: MHPatchCore, shape: tuple[int, ...]) -> None:
    for call in (trained.predict, made().partial_fit):
        with pytest.raises(ValueError, match=r"expected \[B, 3, ") as caught:
            call(torch.zeros(shape))
        assert f"images have shape {list(shape)}" in str(caught.value)


def test_images_with_values_that_are_not_finite_are_refused(trained: MHPatchCore) -> None:
    images = parts(2)
    images[1, 0, 5, 5] = torch.nan
    for call in (trained.predict, made().partial_fit):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call(images)


def test_predicting_before_learning_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was learned yet"):
        made().predict(parts(1))


def test_a_loader_without_a_batch_is_refused(trained: MHPatchCore) -> None:
    with pytest.raises(ValueError, match="the loader gave no batch, expected at least one"):
        trained.predict([])
    for options in ({}, VANILLA):
        with pytest.raises(ValueError, match=r"the loader (gave no batch|empty)"):
            made(**options).fit([])


@pytest.mark.parametrize("batch", [[1, 2], {"picture": torch.zeros(1, 3, 64, 64)}, {"image": "a.png"}])
def test_a_batch_of_another_kind_is_refused(trained: MHPatchCore, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"a batch is a \w+, expected \[B, 3, H, W\] or a map with \"image\""):
        trained.predict([batch])


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (PatchCoreAlgorithm, ["VANILLA", "ONLINE"]),
        (PatchCoreAggregation, ["GREEDY", "KMEANS", "NONE"]),
        (PatchCoreFeatureReduction, ["NONE", "PCA"]),
        (PatchCoreDistance, ["EUCLIDEAN", "MAHALANOBIS"]),
    ],
)
def test_choices_are_indexable_by_name(choice: type[Enum], names: list[str]) -> None:
    assert [member.name for member in choice] == names
    assert [choice[name] for name in names] == list(choice)


def test_the_pass_through_the_backbone_ends_after_the_last_layer(trained: MHPatchCore) -> None:
    backbone = trained.extractor.backbone
    called: list[str] = []
    assert isinstance(backbone.layer4, nn.Module)
    hook = backbone.layer4.register_forward_hook(lambda *_: called.append("layer4"))
    trained.predict(parts(1))
    hook.remove()
    assert called == []


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


VANILLA = {
    "algorithm": PatchCoreAlgorithm.VANILLA,
    "aggregation": PatchCoreAggregation.GREEDY,
    "feature_reduction": PatchCoreFeatureReduction.NONE,
    "distance": PatchCoreDistance.EUCLIDEAN,
}


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

    monkeypatch.setattr("mhpc.core.mh_patch_core.save_file", full)
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
