from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import v2

from mhpc.core.backbones import load_backbone
from mhpc.core.patch_maps import PatchMaps
from tests.worker.helpers import picture, small_settings
from worker.engine import TRIAL_IMAGES, TRIALS, Engine, faster, pick_device
from worker.errors import DeviceError, ModelError
from worker.metrics import Metrics

CPU = torch.device("cpu")


def engine_of(**model: Any) -> Engine:
    return Engine(small_settings(model=model).model, CPU, Metrics())


def prepared(engine: Engine, count: int) -> list[Tensor]:
    return [engine.prepare(picture(seed)) for seed in range(count)]


# -- devices and models that cannot be used ----------------------------------------------------------------------------


def test_a_device_is_picked_by_its_name() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(DeviceError, match=r'worker\.device .* set "auto", "cpu" or "cuda"') as caught:
        pick_device(name)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"weights": "/absent/weights.safetensors"}, ["/absent/weights.safetensors", "safetensors state dict"]),
        ({"weights": "random:x"}, ["random:x", "random:SEED"]),
        ({"backbone": "resnet19"}, ["resnet19", "resnet18", "package.module:function"]),
        ({"backbone": "absent.module:function", "weights": None}, ["absent.module:function", "PYTHONPATH"]),
        ({"layers": ("layer2", "layer9")}, ["layer9", "layer3"]),
        ({"layers": ("layer2", "layer2")}, ["layer2", "distinct"]),
        ({"layers": ("fc",)}, ["fc", "choose another layer"]),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_what_was_expected(model: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        engine_of(**model)
    assert caught.value.exit_code == 4
    assert [part for part in parts if part not in str(caught.value)] == []


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.safetensors"
    save_file(load_backbone("resnet34", "random:0").state_dict(), path)
    with pytest.raises(ModelError, match="do not fit"):
        engine_of(weights=str(path))


# -- pixels to features ------------------------------------------------------------------------------------------------


def test_pixels_are_normalised_by_the_mean_and_deviation_of_imagenet(engine: Engine) -> None:
    pixels = [picture(seed, 64, 64) for seed in range(2)]
    x = (np.stack(pixels).astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected, _ = engine.features(torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2))
    torch.testing.assert_close(engine.forward([engine.prepare(p) for p in pixels]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(90, 130), (40, 48), (640, 96), (64, 64)])
def test_pictures_are_squashed_as_torchvision_does_it_to_one_grey_level(engine: Engine, size: tuple[int, int]) -> None:
    pixels = picture(1, *size)
    theirs = v2.functional.resize(v2.functional.to_image(Pillow.fromarray(pixels)), [64, 64], antialias=True)
    assert int((engine.prepare(pixels).int() - theirs.int()).abs().max()) <= 1
    exact = F.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].double(), size=(64, 64), mode="bilinear", antialias=True
    )
    assert float((engine.prepare(pixels) - exact[0]).abs().max()) <= 1


@pytest.mark.parametrize("size", [(40, 48), (640, 96), (63, 64), (1, 1)])
def test_pictures_of_any_size_are_squashed_to_the_input_shape(engine: Engine, size: tuple[int, int]) -> None:
    assert engine.prepare(picture(0, *size)).shape == (3, 64, 64)


def test_a_picture_is_made_smaller_without_aliasing(engine: Engine) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255  # as fine as the result's pixels: it must become an even grey
    inner = engine.prepare(stripes)[:, 4:-4, 4:-4] / 255
    assert float((inner - 0.5).abs().max()) < 0.02


def test_preparing_leaves_the_pixels_as_they_are(engine: Engine) -> None:
    pixels = picture(3)
    engine.prepare(pixels)
    np.testing.assert_array_equal(pixels, picture(3))


def test_threads_extract_at_the_same_time_what_one_does_alone(engine: Engine) -> None:
    pictures = prepared(engine, 12)
    alone = [engine.forward([picture]) for picture in pictures]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda picture: engine.extract([picture]).joined(), pictures * 4))
    for found, expected in zip(together, alone * 4, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_passes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, expected in ((1, (1, 1)), (2, (2, 1)), (16, (2, 8))):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        engine = engine_of()
        assert (engine.passes, engine.threads) == expected
    own = engine_of(backbone="torchvision.models:resnet18", weights=None)  # nobody knows what a user's own shares
    assert (own.passes, own.threads) == (1, 16)


def test_features_come_in_batches_of_at_most_max_batch() -> None:
    engine = engine_of(max_batch=8)
    batches = list(engine.batches(prepared(engine, 19)))
    assert [tuple(batch.shape) for batch in batches] == [(8, 64, 384), (8, 64, 384), (3, 64, 384)]
    assert engine.grid == (8, 8)
    assert list(engine.batches([])) == []


def test_images_are_taken_only_as_they_are_needed() -> None:
    engine = engine_of(max_batch=8)
    taken = []

    def images() -> Iterator[Tensor]:
        for number, x in enumerate(prepared(engine, 20)):
            taken.append(number)
            yield x

    next(engine.batches(images()))
    assert len(taken) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_on_a_gpu_an_images_features_do_not_depend_on_its_batch(precision: str, tolerance: float) -> None:
    settings = small_settings(model={"precision": precision, "backbone": "resnet18", "weights": "random:0"}).model
    engine = Engine(settings, torch.device("cuda"), Metrics())
    images = prepared(engine, 21)
    together, alone = engine.forward(images), torch.cat([engine.forward([x]) for x in images])
    assert float((together - alone).norm() / together.norm()) < tolerance
    on_cpu = Engine(settings.model_copy(update={"precision": "float32"}), CPU, Metrics()).forward(images)
    assert float((together.cpu() - on_cpu).norm() / on_cpu.norm()) < tolerance


def test_an_images_features_do_not_depend_on_its_batch(engine: Engine) -> None:
    images = prepared(engine, 5)
    together = torch.cat(list(engine.batches(images)))
    alone = torch.cat([features for x in images for features in engine.batches([x])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# -- precision ---------------------------------------------------------------------------------------------------------


def test_bfloat16_gives_float32_features_near_those_of_float32() -> None:
    fine, coarse = engine_of(precision="float32"), engine_of(precision="bfloat16")
    images = prepared(fine, 8)
    expected, features = fine.forward(images), coarse.forward(images)
    assert features.dtype == torch.float32
    assert float((features - expected).norm() / expected.norm()) < 0.02
    assert not torch.equal(features, expected)


def test_in_bfloat16_too_an_images_features_do_not_depend_on_its_batch() -> None:
    engine = engine_of(precision="bfloat16")
    images = prepared(engine, 8)
    together = engine.forward(images)
    torch.testing.assert_close(torch.cat([engine.forward([x]) for x in images]), together, rtol=1e-3, atol=1e-4)


def test_the_faster_precision_is_found_by_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    for slow, fast in permutations((torch.float32, torch.bfloat16)):
        slowed_down(monkeypatch, slow, 0.3)
        assert engine_of(precision="auto").precision is fast
        monkeypatch.undo()


def test_the_trial_has_the_threads_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    real, threads, before = Engine._maps, list[int](), torch.get_num_threads()

    def maps(self: Engine, images: Tensor, of: torch.dtype) -> PatchMaps:
        threads.append(torch.get_num_threads())
        return real(self, images, of)

    monkeypatch.setattr(Engine, "_maps", maps)
    monkeypatch.setattr("worker.engine.passes_of", lambda backbone, device: (2, before + 3))
    engine_of(precision="auto")
    assert set(threads) == {before + 3}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("most", [2, 0])
def test_a_trial_that_the_device_has_no_memory_for_is_one_of_fewer_images(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = Engine._maps, list[int]()

    def maps(self: Engine, images: Tensor, of: torch.dtype) -> PatchMaps:
        tried.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("no room")
        return real(self, images, of)

    monkeypatch.setattr(Engine, "_maps", maps)
    monkeypatch.setitem(TRIAL_IMAGES, "cpu", 8)
    if most:
        engine_of(precision="auto")
        assert tried == [8, 4] + 2 * TRIALS * [2]
    else:
        with pytest.raises(torch.OutOfMemoryError):
            engine_of(precision="auto")
        assert tried == [8, 4, 2, 1]


def test_a_batch_is_halved_though_torch_cannot_give_its_memory_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.11 cannot after a recording that failed; the engine has a GPU until then."""
    images, device = prepared(engine, 4), engine.device
    expected = engine.forward(images)

    def small(_name: str, count: str) -> None:
        if count == "4":
            monkeypatch.setattr(engine, "device", torch.device("cuda"))
            raise torch.OutOfMemoryError("no room")

    def empty_cache() -> None:
        monkeypatch.setattr(engine, "device", device)
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr("worker.engine.failpoint", small)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    torch.testing.assert_close(engine.forward(images), expected)


def slowed_down(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, seconds: float) -> None:
    """Have forward passes take 0.3 s by the engine's clock, and so much longer in one precision."""
    real, clock = Engine._maps, [0.0]

    def maps(self: Engine, images: Tensor, of: torch.dtype) -> PatchMaps:
        clock[0] += 0.3 + seconds * (of is dtype)
        return real(self, images, of)

    monkeypatch.setattr(Engine, "_maps", maps)
    monkeypatch.setattr("worker.engine.time", SimpleNamespace(perf_counter=lambda: clock[0]))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_was_learned_in_is_kept_unless_the_other_is_far_faster(precision: torch.dtype) -> None:
    (other,) = {torch.float32, torch.bfloat16} - {precision}
    assert faster({precision: 2.9, other: 1.0}, precision) is precision
    assert faster({precision: 3.1, other: 1.0}, precision) is other


def test_an_engine_keeps_to_the_precision_that_was_learned_in(monkeypatch: pytest.MonkeyPatch) -> None:
    slowed_down(monkeypatch, torch.bfloat16, 0.3)
    model = small_settings(model={"precision": "auto"}).model
    assert Engine(model, CPU, Metrics(), learned_in=torch.bfloat16).precision is torch.bfloat16


def test_a_backbone_of_the_users_own_keeps_its_precision() -> None:
    assert engine_of(backbone="torchvision.models:resnet18", weights=None, precision="auto").precision is torch.float32


def test_the_fingerprint_tells_what_decides_a_features_meaning(engine: Engine) -> None:
    assert engine_of().fingerprint == engine.fingerprint
    assert engine_of(bank_size=7, max_batch=8).fingerprint == engine.fingerprint
    others: list[dict[str, Any]] = [
        {"weights": "random:1"},
        {"layers": ("layer3", "layer2")},
        {"layers": ("layer2",)},
        {"input_shape": (64, 96)},
    ]
    assert len({engine.fingerprint, *(engine_of(**other).fingerprint for other in others)}) == 5
