"""The file of a model: its tensors as safetensors, its configuration and its backbone's hash beside them; no pickle."""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mhpc.core.choices import CHOICES


class ModelFile(NamedTuple):
    """MHPatchCore's configuration, the hash of its backbone's parameters, and its learner's state."""

    config: dict[str, Any]
    backbone_hash: str
    state: dict[str, Tensor]


def write_model(path: str | Path, config: Mapping[str, Any], backbone_hash: str, state: dict[str, Tensor]) -> None:
    """Write the file, which takes its place when it is whole: one that was there stays if writing fails.

    Raises:
        ValueError: the path is a folder, or in none that exists.
    """
    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise ValueError(f"{path} cannot be written: expected a file in a folder that exists")
    named = {name: value.name if isinstance(value, Enum) else value for name, value in config.items()}
    metadata = {"mhpc": json.dumps({**named, "backbone_hash": backbone_hash})}
    partial = Path(f"{path}.partial")
    try:
        save_file(state, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_model(path: str | Path) -> ModelFile:
    """What `write_model` wrote.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["mhpc"])
            if not isinstance(config, dict) or not isinstance(config.get("backbone"), str):
                raise TypeError("no backbone is named")
            backbone_hash = config.pop("backbone_hash")
            config |= {name: choice[config[name]] for name, choice in CHOICES.items()}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a model that MHPatchCore.save wrote: {error!r}") from None
    return ModelFile(config, backbone_hash, state)
