"""Backbones by name, by function or as a module, and where their weights come from."""

import hashlib
import importlib
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from copy import deepcopy
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
    resnet152 = "resnet152"
    wideresnet50 = "wide_resnet50_2"
    wideresnet101 = "wide_resnet101_2"
    efficientnet_b0 = "efficientnet_b0"
    efficientnet_b1 = "efficientnet_b1"
    efficientnet_b2 = "efficientnet_b2"
    efficientnet_b3 = "efficientnet_b3"
    efficientnet_b4 = "efficientnet_b4"
    efficientnet_b5 = "efficientnet_b5"
    efficientnet_b6 = "efficientnet_b6"
    efficientnet_b7 = "efficientnet_b7"
    efficientnet_v2_s = "efficientnet_v2_s"
    efficientnet_v2_m = "efficientnet_v2_m"
    efficientnet_v2_l = "efficientnet_v2_l"
    mobilenet_v2 = "mobilenet_v2"
    mobilenet_v3_small = "mobilenet_v3_small"
    mobilenet_v3_large = "mobilenet_v3_large"
    convnext_tiny = "convnext_tiny"
    convnext_small = "convnext_small"
    convnext_base = "convnext_base"
    convnext_large = "convnext_large"


# The last layer at stride 8 and the last at stride 16, by the beginning of the name: the two that PatchCore is
# published with, and their like in the other families.
DEFAULT_LAYERS = {
    "tiny": ("layer2", "layer3"),
    "resnet": ("layer2", "layer3"),
    "wide_resnet": ("layer2", "layer3"),
    "efficientnet": ("features.3", "features.5"),
    "mobilenet_v2": ("features.6", "features.13"),
    "mobilenet_v3_small": ("features.3", "features.8"),
    "mobilenet_v3_large": ("features.6", "features.12"),
    "convnext": ("features.3", "features.5"),
}


class BackboneError(ValueError):
    """A backbone or weights that cannot be used; the text names what came, what was expected and the remedy."""


def load_backbone(backbone: BackboneName | str | nn.Module, weights: str | Path | None = "pretrained") -> nn.Module:
    """The module in eval mode, its parameters frozen.

    Args:
        backbone: a BackboneName, its value, "package.module:function", or a module, of which a copy is taken; the last
            two bring their own weights, and `weights` is not looked at.
        weights: "pretrained" (torchvision's first ImageNet weights, from torch hub's cache or else downloaded and
            hash-checked), "bundled" (tiny alone), "random:SEED", or the path of a safetensors state dict.

    Raises:
        BackboneError: no such backbone or weights, or they do not fit each other. Nothing falls back.
    """
    if isinstance(backbone, nn.Module):
        module = _copied(backbone)
    elif isinstance(backbone, str) and ":" in backbone:
        module = _from_function(backbone)
    else:
        module = _named(_name(backbone), weights)
    return module.eval().requires_grad_(False)


def default_layers(backbone: BackboneName | str | nn.Module) -> list[str]:
    """Names of the layers at strides 8 and 16 of a known backbone.

    Raises:
        BackboneError: a module or function of the user's own, whose layers are not known.
    """
    if isinstance(backbone, nn.Module) or (isinstance(backbone, str) and ":" in backbone):
        raise BackboneError(f"the layers of {backbone_label(backbone)} are not known; name those to use")
    name = _name(backbone).value
    return next(list(layers) for family, layers in DEFAULT_LAYERS.items() if name.startswith(family))


def pretrained_file(name: BackboneName) -> Path:
    """Where torch hub keeps, or would keep, torchvision's weights of a backbone other than tiny."""
    import torchvision.models

    url: str = torchvision.models.get_model_weights(name.value).IMAGENET1K_V1.url
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def backbone_label(backbone: BackboneName | str | nn.Module) -> str:
    """How a backbone is written in files and figures."""
    if isinstance(backbone, nn.Module):
        return f"{type(backbone).__module__}.{type(backbone).__qualname__}"
    return backbone.value if isinstance(backbone, BackboneName) else backbone


def hash_parameters(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's parameters and buffers; not over what it computes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # GPU sync
    return digest.hexdigest()


def _name(backbone: BackboneName | str) -> BackboneName:
    try:
        return BackboneName(backbone)
    except ValueError:
        known = ", ".join(name.value for name in BackboneName)
        raise BackboneError(f'backbone {backbone!r} is unknown; known: {known}, or "package.module:function"') from None


def _copied(module: nn.Module) -> nn.Module:
    """The caller's own may be in training."""
    try:
        return deepcopy(module)
    except RuntimeError as error:  # a tensor with a graph behind it, such as weight_norm's, or an output that was kept
        raise BackboneError(
            f"the backbone {type(module).__qualname__} cannot be copied: {error}; let go of tensors that it has "
            'computed and keeps, or give "package.module:function", which makes one'
        ) from None


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
        return _with_state(_without_values(name), load_file(path), str(path))
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


def _without_values(name: BackboneName) -> nn.Module:
    """For a state dict: to draw the values that it replaces takes 0.3 s for wide_resnet50_2."""
    with torch.device("meta"):
        module = _untrained(name)
    module = module.to_empty(device="cpu")
    for buffer in module.buffers():
        buffer.zero_()  # a count of batches may be missing, as in files from before there was one
    return module


def _random(name: BackboneName, weights: str) -> nn.Module:
    seed = weights.removeprefix("random:")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 20):  # torch takes 64 bits
        raise BackboneError(
            f'weights {weights!r}: expected "random:SEED" with a whole number of at most 19 digits, such as "random:0"'
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _untrained(name)


def _pretrained(name: BackboneName) -> nn.Module:
    if name is BackboneName.tiny:
        raise BackboneError('weights "pretrained" are torchvision\'s; backbone "tiny" comes with weights "bundled"')
    import torchvision.models

    weights = torchvision.models.get_model_weights(name.value).IMAGENET1K_V1  # those that PatchCore was published with
    cached = pretrained_file(name)
    try:
        # torch hub unpickles by default whatever lies in its cache, and compares hashes after a download alone:
        # weights_only lets in tensors and nothing that runs.
        with redirect_stdout(sys.stderr):  # "Downloading: ..." is not for a command's --json
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle fails in any way
        if cached.exists():  # a download that fails leaves no file there
            raise _damaged(cached, type(error).__name__, weights.url) from None  # its text advises unsafe loading
        raise BackboneError(
            f"the pretrained weights of {name.value} cannot be had from {weights.url} ({error}); download them "
            f"elsewhere to {cached}, or give weights = PATH (safetensors), or use backbone = "
            '"tiny" with weights = "bundled"'
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _damaged(cached, "no state dict: names and tensors", weights.url)
    return _with_state(_without_values(name), state, str(cached))


def _damaged(cached: Path, reason: str, url: str) -> BackboneError:
    return BackboneError(
        f"{cached} holds no weights that can be read ({reason}); delete it, and it is downloaded anew from {url}"
    )


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
