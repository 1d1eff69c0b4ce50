import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mhpc.core.choices import CHOICES
from mhpc.core.mh_patch_core import MHPatchCore
from mhpc.core.model_file import read_model

WHOLE = {"backbone": "tiny", "backbone_hash": "x"} | {name: next(iter(choice)).name for name, choice in CHOICES.items()}


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        3,
        None,
        "text",
        {},
        {name: value for name, value in WHOLE.items() if name != "backbone"},
        {name: value for name, value in WHOLE.items() if name != "backbone_hash"},
        WHOLE | {"backbone": 3},
        WHOLE | {"algorithm": "OTHER"},
        WHOLE | {"algorithm": ["ONLINE"]},
    ],
)
def test_metadata_of_another_kind_are_refused(metadata: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"mhpc": json.dumps(metadata)})
    for read in (read_model, MHPatchCore.load):
        with pytest.raises(ValueError, match=r"model\.safetensors is not a model that MHPatchCore\.save wrote"):
            read(path)
