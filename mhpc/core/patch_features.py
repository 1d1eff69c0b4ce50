"""Images to patch features: a backbone, cut after the last layer asked for, and locally pooled maps of its layers."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhpc.core.backbones import BackboneError

MIN_SIDE = 32  # pixels


class _LastLayerReached(Exception):  # noqa: N818 - control flow, not an error: it ends the forward pass early
    pass


class PatchFeatures:
    """Patch features of images (Roth et al., 2022, section 3.1).

    Each layer's map is averaged over patchsize x patchsize neighbourhoods, brought bilinearly to the largest map's
    grid, and the layers are concatenated.

    Args:
        backbone: in eval mode.
        layers: names of submodules, as `named_modules` gives them.
        patchsize: odd side of the neighbourhood.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str],
        patchsize: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        if patchsize < 1 or patchsize % 2 == 0:
            raise ValueError(f"patchsize is {patchsize}, expected an odd number: a neighbourhood has a centre")
        self.backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
        self.layers = tuple(layers)
        self.patchsize = patchsize
        self.device = torch.device(device)
        self._modules = _find(backbone, self.layers)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Features [B, P, D] float32 of normalised images [B, 3, H, W], and the grid (h, w) with P = h * w.

        Raises:
            ValueError: not [B, 3, H, W], too small, or a layer whose output is not a map.
        """
        check_images(images)
        maps = self._forward(images.to(self.device, torch.float32, memory_format=torch.channels_last))
        pooled = [F.avg_pool2d(m, self.patchsize, stride=1, padding=self.patchsize // 2) for m in maps]
        h, w = max((m.shape[2:] for m in pooled), key=lambda size: size[0] * size[1])
        aligned = [
            m if m.shape[2:] == (h, w) else F.interpolate(m, size=(h, w), mode="bilinear", align_corners=False)
            for m in pooled
        ]
        B = len(images)
        features = torch.cat(aligned, 1).permute(0, 2, 3, 1)  # [B, h, w, D]
        return features.reshape(B, h * w, -1), (h, w)

    def _forward(self, x: Tensor) -> list[Tensor]:
        """The layers' maps, each [B, C, h, w]; the pass ends once the last of them is there."""
        maps: dict[str, Tensor] = {}

        def keep(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"layer {name!r} gives {shape}, expected a map [B, C, h, w]; choose another layer")
            maps[name] = output
            if len(maps) == len(self.layers):
                raise _LastLayerReached

        hooks = [module.register_forward_hook(partial(keep, name)) for name, module in self._modules.items()]
        try:
            self.backbone(x)
        except _LastLayerReached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if len(maps) < len(self.layers):
            raise ValueError(f"layers {sorted(set(self.layers) - set(maps))} took no part in the forward pass")
        return [maps[name] for name in self.layers]


def check_images(images: Tensor) -> None:
    """Raise ValueError unless images are [B, 3, H, W] and large enough."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0 or min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"images have shape {list(images.shape)}, expected [B, 3, H, W] with B >= 1 and H, W >= {MIN_SIDE}"
        )


def _find(backbone: nn.Module, layers: tuple[str, ...]) -> dict[str, nn.Module]:
    modules = dict(backbone.named_modules())
    missing = [name for name in layers if name not in modules or not name]
    if missing or len(set(layers)) != len(layers) or not layers:
        known = ", ".join(name for name in modules if name and name.count(".") == 0)
        raise BackboneError(f"layers {list(layers)}: expected distinct names of {type(backbone).__name__}: {known}")
    return {name: modules[name] for name in layers}
