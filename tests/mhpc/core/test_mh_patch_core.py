from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from mhpc.core.backbones import BackboneName, load_backbone
from mhpc.core.mh_patch_core import (
    LabelledPrediction,
    MHPatchCore,
    PatchCoreAggregation,
    PatchCoreAlgorithm,
    PatchCoreDistance,
    PatchCoreFeatureReduction,
)
from tests.mhpc.core.modelling import SIDE, VANILLA, defective, made, online, parts, predicted


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
    learning.freeze()
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


def test_a_function_that_a_file_names_is_called_unless_the_module_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, called = load_backbone("tiny", "random:4"), list[str]()

    def make_own() -> nn.Module:
        called.append("own")
        return own

    monkeypatch.setattr("mhpc.core.tiny.own", make_own, raising=False)
    made(backbone="mhpc.core.tiny:own", weights=None).partial_fit(parts(8)).save(tmp_path / "model")
    called.clear()
    MHPatchCore.load(tmp_path / "model", backbone=own)
    assert called == []
    MHPatchCore.load(tmp_path / "model")
    assert called == ["own"]


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
    with pytest.raises(ValueError, match="the loader gave no batch, expected at least one"):
        made().fit([])
    with pytest.raises(ValueError, match="0 patches in 0 images, expected at least 2: is the loader empty"):
        made(**VANILLA).fit([])


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


@pytest.mark.parametrize("images", [[1, 2], {"image": torch.zeros(1, 3, SIDE, SIDE)}, torch.zeros(3, SIDE, SIDE)])
def test_what_is_no_batch_of_images_is_refused_by_partial_fit(images: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        made().partial_fit(images)


def test_a_batch_that_is_refused_is_not_learned_in_part() -> None:
    model, images = made(), parts(40)
    images[39, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"images \[40, 3, .* hold NaN or infinite values"):
        model.partial_fit(images)
    assert online(model).images_learned_ == 0


def test_freezing_needs_something_learned_and_is_where_vanilla_begins() -> None:
    for model in (made(), made(**VANILLA)):
        with pytest.raises(ValueError, match="nothing was learned yet"):
            model.freeze()
    model = made(**VANILLA).fit([parts(8)])
    assert torch.equal(model.freeze().learner_.memory_, made(**VANILLA).fit([parts(8)]).learner_.memory_)


def test_a_module_that_is_given_stays_as_it_is() -> None:
    module = load_backbone("resnet18", "random:0").train().requires_grad_(True)
    module.fc.requires_grad_(False)
    made(backbone=module, weights=None).fit([parts(8)])
    assert module.training
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["fc.weight", "fc.bias"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            module.state_dict().values(), load_backbone("resnet18", "random:0").state_dict().values(), strict=True
        )
    )


def test_numbers_of_numpys_are_taken_and_saved(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {
        "bank_size": np.int64(100), "pca_variance_ratio": np.float32(0.9), "patchsize": np.int32(3), "top_k": np.int8(2)
    }  # fmt: skip
    made(**numbers).fit([parts(8)]).save(tmp_path / "model")
    assert MHPatchCore.load(tmp_path / "model").config["pca_variance_ratio"] == pytest.approx(0.9)


@pytest.mark.filterwarnings("ignore:the reservoir")
@pytest.mark.parametrize("options", [VANILLA, {}, {"aggregation": PatchCoreAggregation.NONE}])
def test_torchs_default_type_may_be_another(options: dict[str, Any]) -> None:
    expected = predicted(made(**options).fit([parts(16)]), parts(2, seed=1))
    torch.set_default_dtype(torch.float64)
    try:
        found = predicted(made(**options).fit([parts(16).float()]), parts(2, seed=1).float())
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.scores.dtype == torch.float32
    assert found.scores.shape == expected.scores.shape
