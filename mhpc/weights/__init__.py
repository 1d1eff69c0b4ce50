"""The bundled weights. README.md beside this file is their model card."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load

TINY = Path(__file__).with_name("tiny.safetensors")
TINY_SHA256 = "6a6d21c588c0e51955daea3afb6b3832b075cc0e6783b0a024d7582de01b2fc9"


def load_tiny_state(path: Path = TINY) -> dict[str, torch.Tensor]:
    """Read the state dict of `mhpc.core.tiny.TinyBackbone()`, float32 on the CPU, after checking the file's checksum.

    Raises `ValueError` where the file is not the one that was released, or is absent.
    """
    remedy = "install the package anew (pip install --force-reinstall mhpc) or restore the file from the repository"
    if not path.is_file():
        raise ValueError(f"the bundled weights {path} are absent; {remedy}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != TINY_SHA256:
        raise ValueError(f"the bundled weights {path} have SHA-256 {found}, expected {TINY_SHA256}; {remedy}")
    return {name: tensor.float() for name, tensor in load(content).items()}
