"""The teacher: any network that brings its own weights, seen through the maps of a few named layers."""

import importlib

import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from mhpc.core.backbones import BackboneError


class Teacher:
    """Maps of `layers`, standardised per channel once `standardise` has seen some images."""

    def __init__(self, network: nn.Module, layers: tuple[str, ...], device: torch.device) -> None:
        known = dict(network.named_modules())
        missing = [layer for layer in layers if layer not in known]
        if missing:
            children = ", ".join(name for name, _ in network.named_children())
            raise BackboneError(f"teacher has no layer {', '.join(missing)}; its children are {children}")
        self.layers = layers
        self.network = create_feature_extractor(network.eval(), list(layers)).to(device)
        self.network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.mean_: list[torch.Tensor] = []
        self.deviation_: list[torch.Tensor] = []

    @torch.no_grad()
    def standardise(self, images: torch.Tensor) -> None:
        """Learn each channel's mean and deviation, [1, C, 1, 1] per layer, from [B, 3, H, W] images."""
        maps = self._maps(images)
        self.mean_ = [m.mean(dim=(0, 2, 3), keepdim=True) for m in maps]
        # A channel that never fires carries no signal: with a floor it stays at 0 instead of becoming noise.
        self.deviation_ = [m.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3) for m in maps]

    @torch.no_grad()
    def targets(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Standardised maps [B, C, h, w] float32, one per layer."""
        return [
            (m - mean) / deviation
            for m, mean, deviation in zip(self._maps(images), self.mean_, self.deviation_, strict=True)
        ]

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.network(images.to(memory_format=torch.channels_last))
        return [maps[layer].float() for layer in self.layers]


def load_teacher(reference: str) -> nn.Module:
    """Call the function that "package.module:function" names; it returns a network with its weights.

    Raises `ValueError` where the reference has another form, names nothing that can be imported, or gives no module.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise BackboneError(f'teacher {reference!r}: expected "package.module:function"')
    try:
        network = getattr(importlib.import_module(module_name), function_name)()
    except (ImportError, AttributeError) as error:
        raise BackboneError(f"teacher {reference!r} cannot be loaded: {error}; is its folder on PYTHONPATH?") from error
    if not isinstance(network, nn.Module):
        raise BackboneError(f"teacher {reference!r} gave {type(network).__name__}, expected a torch.nn.Module")
    return network
