"""Backbones by name, by function or as a module, and where their weights come from."""

import hashlib
import importlib
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mhpc.core.tiny import TinyBackbone
from mhpc.weights import load_tiny_state


class BackboneName(Enum):
    """Backbones that are known by name; the values are torchvision's, but for the one in the box."""

    tiny = "tiny"
    resnet18 = "resnet18"
    resnet34 = "resnet34"
    resnet50 = "resnet50"
    resnet101 = "resnet101"
    wideresnet50 = "wide_resnet50_2"
    wideresnet101 = "wide_resnet101_2"
    mobilenet_v2 = "mobilenet_v2"
    mobilenet_v3_large = "mobilenet_v3_large"
    efficientnet_b0 = "efficientnet_b0"
    convnext_tiny = "convnext_tiny"


class BackboneError(ValueError):
    """A backbone or weights that cannot be used; the text names what came, what was expected and the remedy."""


def load_backbone(backbone: BackboneName | str | nn.Module, weights: str | Path | None = "pretrained") -> nn.Module:
    """The module in eval mode, its parameters frozen.

    Args:
        backbone: a BackboneName, its value, "package.module:function", or a module; the last two bring their own
            weights, and `weights` is not looked at.
        weights: "pretrained" (torchvision's own download, hash-checked), "bundled" (tiny alone), "random:SEED", or the
            path of a safetensors state dict.

    Raises:
        BackboneError: no such backbone or weights, or they do not fit each other. Nothing falls back.
    """
    if isinstance(backbone, nn.Module):
        module = backbone
    elif isinstance(backbone, str) and ":" in backbone:
        module = _from_function(backbone)
    else:
        module = _named(_name(backbone), weights)
    return module.eval().requires_grad_(False)


def backbone_label(backbone: BackboneName | str | nn.Module) -> str:
    """How a backbone is written in files and figures."""
    if isinstance(backbone, nn.Module):
        return f"{type(backbone).__module__}.{type(backbone).__qualname__}"
    return backbone.value if isinstance(backbone, BackboneName) else backbone


def hash_parameters(module: nn.Module) -> str:
    """SHA-256 over a module's names, shapes and values: two backbones with equal features have equal hashes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name(backbone: BackboneName | str) -> BackboneName:
    try:
        return BackboneName(backbone)
    except ValueError:
        known = ", ".join(name.value for name in BackboneName)
        raise BackboneError(f'backbone {backbone!r} is unknown; known: {known}, or "package.module:function"') from None


def _from_function(path: str) -> nn.Module:
    module_name, _, function_name = path.partition(":")
    try:
        function: Callable[[], object] = getattr(importlib.import_module(module_name), function_name)
        module = function()
    except Exception as error:
        raise BackboneError(
            f"backbone {path!r} gives {type(error).__name__}: {error}; expected an importable function without "
            "arguments (is its folder on PYTHONPATH?)"
        ) from error
    if not isinstance(module, nn.Module):
        raise BackboneError(f"backbone {path!r} returned {type(module).__name__}, expected a torch.nn.Module")
    return module


def _named(name: BackboneName, weights: str | Path | None) -> nn.Module:
    if weights is None:
        raise BackboneError(f'weights of {name.value} are missing; give "pretrained", "random:SEED" or a path')
    if weights == "bundled":
        if name is not BackboneName.tiny:
            raise BackboneError(f'weights "bundled" are for backbone "tiny" alone, not {name.value!r}')
        return _bundled()
    if weights == "pretrained":
        return _pretrained(name)
    if isinstance(weights, str) and weights.startswith("random:"):
        return _random(name, weights)
    path = Path(weights)
    try:
        return _with_state(_untrained(name), load_file(path), str(path))
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            f"weights {str(path)!r} cannot be read ({error}); expected a safetensors state dict of {name.value}, "
            '"pretrained", "random:SEED"' + (' or "bundled"' if name is BackboneName.tiny else "")
        ) from None


def _bundled() -> nn.Module:
    try:
        state = load_tiny_state()
    except ValueError as error:  # absent or damaged
        raise BackboneError(str(error)) from None
    return _with_state(TinyBackbone(), state, "bundled")


def _untrained(name: BackboneName) -> nn.Module:
    if name is BackboneName.tiny:
        return TinyBackbone()
    import torchvision.models

    module: nn.Module = torchvision.models.get_model(name.value, weights=None)
    return module


def _random(name: BackboneName, weights: str) -> nn.Module:
    seed = weights.removeprefix("random:")
    if not seed.isdigit():
        raise BackboneError(f'weights {weights!r}: expected "random:SEED" with a whole number, such as "random:0"')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _untrained(name)


def _pretrained(name: BackboneName) -> nn.Module:
    if name is BackboneName.tiny:
        raise BackboneError('weights "pretrained" are torchvision\'s; backbone "tiny" comes with weights "bundled"')
    import torchvision.models

    weights = torchvision.models.get_model_weights(name.value).IMAGENET1K_V1  # those that PatchCore was published with
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash a RuntimeError
        raise BackboneError(
            f"the pretrained weights of {name.value} cannot be had from {weights.url} ({error}); download them "
            f'elsewhere and give weights = PATH (safetensors), or use backbone = "tiny" with weights = "bundled"'
        ) from None
    return _with_state(_untrained(name), state, "pretrained")


def _with_state(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> nn.Module:
    try:
        module.load_state_dict(state)
    except RuntimeError:  # its text lists every tensor, on lines of their own
        own = module.state_dict()
        wrong = {
            "missing": own.keys() - state.keys(),
            "unknown": state.keys() - own.keys(),
            "of another shape": {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape},
        }
        counts = [f"{len(names)} {what} ({min(names)}, ...)" for what, names in wrong.items() if names]
        raise BackboneError(
            f"weights {source!r} do not fit {type(module).__name__}: of its {len(own)} tensors {', '.join(counts)}; "
            "give those of this backbone, or name the backbone that they are of"
        ) from None
    return module
