import shutil
from pathlib import Path

import pytest
import torch

from mhpc.core.tiny import TinyBackbone
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


def test_the_model_card_lies_beside_the_weights() -> None:
    card = TINY.with_name("README.md").read_text()
    assert TINY_SHA256 in card
