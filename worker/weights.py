"""Weights of a backbone as a file: fetched once, checked anywhere."""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mhpc.core.backbones import BackboneError, BackboneName, hash_parameters, load_backbone, pretrained_file
from worker.errors import ConfigurationError, ModelError

IN_ITS_NAME = re.compile(r"-([a-f0-9]{8,})\.")  # the beginning of its SHA-256, as torch hub's files have it
IN_THE_BOX = 'backbone "tiny" comes with its weights: weights = "bundled"; there is nothing to fetch'


class Weights(NamedTuple):
    """A file of weights.

    Attributes:
        sha256: of the file.
        source: where they were fetched from; "" if the file does not say.
        checked: what was found to hold.
        missing: what could not be checked, and why.
    """

    file: str
    backbone: str
    tensors: int
    bytes: int
    sha256: str
    source: str
    checked: list[str]
    missing: list[str]


def fetch(backbone: str, output: Path) -> Weights:
    """Download torchvision's weights, or take them from torch hub's cache, and write them as safetensors.

    Beside the file goes `OUTPUT.sha256`, as sha256sum --check reads it; in its metadata stand the backbone, the source
    and a SHA-256 over names, shapes and values.

    Raises:
        ModelError: no such backbone, or its weights cannot be had.
        ConfigurationError: the file cannot be written.
    """
    if backbone == BackboneName.tiny.value or ":" in backbone:
        raise ModelError(IN_THE_BOX if ":" not in backbone else f"{backbone} brings its own weights: none to fetch")
    try:
        module = load_backbone(backbone, "pretrained")
    except BackboneError as error:
        raise ModelError(str(error)) from None
    original = pretrained_file(BackboneName(backbone))
    taken = _sha256(original.read_bytes())
    begins = IN_ITS_NAME.search(original.name)
    holds = begins is not None and taken.startswith(begins[1])  # torch hub does not look again at what it has
    source = _url(BackboneName(backbone)) if holds else ""
    state = module.state_dict()
    about = {"backbone": backbone, "source": source, "source_sha256": taken, "sha256": hash_parameters(module)}
    content = save(state, {"mhpc": json.dumps(about)})  # one key: safetensors writes several in any order
    sha256 = _sha256(content)
    _write(output, content)
    _write(_beside(output), f"{sha256}  {output.name}\n".encode())
    told = f"the SHA-256 of {original} {'begins' if holds else 'does not begin'} as its name says"
    checked, missing = ([told], []) if holds else ([], [f"{told}: if it is not your own, delete it and fetch again"])
    return Weights(str(output), backbone, len(state), len(content), sha256, source, checked, missing)


def verify(path: Path, backbone: str | None = None) -> Weights:
    """Check that a file is as it was written, and fits its backbone.

    Args:
        backbone: that it is for; None where the file says so itself.

    Raises:
        ModelError: it is damaged, or of another backbone.
        ConfigurationError: neither the call nor the file names a backbone.
    """
    content, about = _read(path)
    sha256, checked, missing = _sha256(content), list[str](), list[str]()
    if _beside(path).is_file():
        _compare(f"{_beside(path)} says", _beside(path).read_text(errors="replace").split()[:1], sha256, path)
        checked.append(f"its SHA-256 is that of {_beside(path)}")
    else:
        missing.append(f"no {_beside(path)} is there, so nobody knows its SHA-256")
    name = backbone or about.get("backbone")
    if not name:
        raise ConfigurationError(f"{path} does not say which backbone it is for; expected --backbone with its name")
    module = _loaded(name, path)
    checked.append(f"names and shapes of its tensors are those of {name}")
    if "sha256" in about:
        _compare("its metadata say", [str(about["sha256"])], hash_parameters(module), path)
        checked.append("the SHA-256 of its values is that of its metadata")
    else:
        missing.append("its metadata hold no SHA-256 of its values: mhpc-worker weights fetch did not write it")
    tensors, source = len(module.state_dict()), about.get("source", "")
    if "source_sha256" in about and not source:
        missing.append(
            "it was made of a file in torch hub's cache whose hash was not its name's: not torchvision's own"
        )
    return Weights(str(path), name, tensors, len(content), sha256, source, checked, missing)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The content, and what its metadata say of it; nothing where another program wrote them."""
    try:
        content = path.read_bytes()
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("mhpc", "{}"))
    except OSError as error:
        raise ModelError(f"weights {path} cannot be read: {error.strerror or error}; name a safetensors file") from None
    except SafetensorError as error:
        raise ModelError(f"weights {path} are no safetensors file, or cut off: {error}; fetch them anew") from None
    except ValueError:
        raise ModelError(f"weights {path} are damaged: their metadata are no JSON; fetch or copy them anew") from None
    return content, about if isinstance(about, dict) else {}


def _loaded(backbone: str, path: Path) -> nn.Module:
    try:
        return load_backbone(backbone, path)
    except BackboneError as error:
        raise ModelError(str(error)) from None


def _compare(who: str, expected: list[str], found: str, path: Path) -> None:
    if expected != [found]:
        came = expected[0] if expected else "nothing"
        raise ModelError(
            f"weights {path} are damaged: {who} SHA-256 {came:.64}, found {found}; fetch or copy them anew"
        )


def _url(name: BackboneName) -> str:
    import torchvision.models

    url: str = torchvision.models.get_model_weights(name.value).IMAGENET1K_V1.url
    return url


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigurationError(f"--output {path} is not written: {error.strerror or error}; name another") from None
