"""Training checkpoints: tensors and a JSON recipe in one safetensors file, replaced atomically, no pickle."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save_checkpoint(
    path: Path, modules: nn.Module, optimizer: torch.optim.Optimizer, step: int, recipe: dict[str, object]
) -> None:
    """Write modules, the optimiser's moments, the step and the recipe; `path` never holds half a checkpoint."""
    tensors = {f"module.{name}": tensor.contiguous() for name, tensor in modules.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            tensors[f"optimizer.{index}.{name}"] = tensor.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    save_file(tensors, unfinished, metadata={"step": str(step), "recipe": json.dumps(recipe, sort_keys=True)})
    os.replace(unfinished, path)


def load_checkpoint(path: Path, modules: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict[str, object]) -> int:
    """Load what `save_checkpoint` wrote, in place; returns the steps done.

    Raises `ValueError` where the checkpoint was made with another recipe, naming what differs.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    if "recipe" not in metadata or "step" not in metadata:
        raise ValueError(f"{path} is no training checkpoint: expected one that `mhpc train` wrote; leave --resume out")
    found = json.loads(metadata["recipe"])
    differing = [key for key in sorted(recipe.keys() | found.keys()) if recipe.get(key) != found.get(key)]
    if differing:
        said = "; ".join(f"{key} is {recipe.get(key)!r}, the checkpoint's {found.get(key)!r}" for key in differing)
        raise ValueError(f"{path} belongs to another run ({said}); give the same options or leave --resume out")
    modules.load_state_dict(
        {name.removeprefix("module."): tensor for name, tensor in tensors.items() if name.startswith("module.")}
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            state.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])
