import shutil
from pathlib import Path

import pytest
import torch

from mhpc.core.tiny import TinyBackbone
from mhpc.training.pictures import generate
from mhpc.weights import TINY, TINY_SHA256, load_tiny_state


def test_the_bundled_weights_fit_the_backbone() -> None:
    state = load_tiny_state()
    TinyBackbone().load_state_dict(state, strict=True)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in state.values())


def test_one_flipped_bit_is_refused_naming_both_checksums(tmp_path: Path) -> None:
    damaged = tmp_path / TINY.name
    shutil.copy(TINY, damaged)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=f"have SHA-256 [0-9a-f]{{64}}, expected {TINY_SHA256}; install") as refusal:
        load_tiny_state(damaged)
    assert str(refusal.value).count(TINY_SHA256) == 1


def test_absent_weights_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent; install the package anew"):
        load_tiny_state(tmp_path / "tiny.safetensors")


def test_the_model_card_lies_beside_the_weights_and_is_theirs() -> None:
    card = TINY.with_name("README.md").read_text()
    parameters = sum(parameter.numel() for parameter in TinyBackbone().parameters())
    for fact in (TINY_SHA256, f"{TINY.stat().st_size:,} bytes", f"{parameters:,} parameters"):
        assert fact in card


@torch.inference_mode()
def test_a_change_is_seen_where_it_is() -> None:
    backbone = TinyBackbone().eval()
    backbone.load_state_dict(load_tiny_state())
    shifts: dict[int, list[torch.Tensor]] = {8: [], 16: []}
    for index in range(8):
        picture = torch.from_numpy(generate(0, index, side=224).copy()).permute(2, 0, 1)[None].float() / 128 - 1
        changed, at = picture.clone(), 96 + 4 * index
        changed[..., at : at + 4, at : at + 4] += 2
        layer2 = [backbone.layer2(backbone.layer1(backbone.stem(x))) for x in (picture, changed)]
        for stride, (before, after) in ((8, layer2), (16, [backbone.layer3(maps) for maps in layer2])):
            energy = (after - before).square().sum(dim=(0, 1))
            cells = torch.arange(len(energy)) * stride + (stride - 1) / 2
            centre = torch.stack([(energy.sum(axis) * cells).sum() / energy.sum() for axis in (1, 0)])
            shifts[stride].append(centre - (at + 1.5))
    assert float(torch.stack(shifts[8]).mean(0).abs().max()) < 2  # pixels
    assert float(torch.stack(shifts[16]).mean(0).abs().max()) < 4
