"""The bundled backbone: 0.55 M parameters, depthwise-separable, laid out for the CPU.

It is MobileNet v1 (Howard et al., 2017, arXiv:1704.04861, table 1) up to stride 16, half as wide there. One thing is
changed: every downsampling kernel is even (4 x 4, stride 2, padding 1), so that the cells of each map can lie at the
centres of the pixels that they stand for, and a heat map scaled up from them is not shifted.
"""

import torch
import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Channels of the maps at strides 8 and 16, those that the memory bank sees.
LAYER2, LAYER3 = 256, 256
STEM = (24, 64)  # channels at stride 2, where maps are largest: of MobileNet's 32 in its first layer, 24 ever fire
STRIDE = 16  # of `layer3`
CHUNK_BYTES = 4 * 3 * 224 * 224 * 4  # of images that run through `stem` and `layer1` at once on a CPU


def _convolution(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, *, batch_norm: bool
) -> nn.Sequential:
    padding = (kernel - 1) // 2
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=not batch_norm)
    norm = nn.BatchNorm2d(c_out) if batch_norm else nn.Identity()
    return nn.Sequential(convolution, norm, nn.ReLU6(inplace=True))


def _separable(c_in: int, c_out: int, stride: int = 1, *, batch_norm: bool) -> nn.Sequential:
    kernel = 4 if stride == 2 else 3
    return nn.Sequential(
        _convolution(c_in, c_in, kernel, stride, groups=c_in, batch_norm=batch_norm),
        _convolution(c_in, c_out, 1, batch_norm=batch_norm),
    )


@torch.fx.wrap  # a leaf for torchvision's create_feature_extractor, which traces the shapes away
def _checked(images: torch.Tensor) -> torch.Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < STRIDE:
        raise ValueError(
            f"images have shape {list(images.shape)}, expected [B, 3, H, W] with H, W >= {STRIDE}, the largest stride"
        )
    return images


class TinyBackbone(nn.Module):
    """Feature maps of [B, 3, H, W] float32 images, normalised with ImageNet's mean and deviation.

    `layer2` gives [B, 256, H // 8, W // 8] and `layer3`, the output, [B, 256, H // 16, W // 16]; the children run in
    the order `stem`, `layer1`, `layer2`, `layer3`. As built by default, batch norm is folded into the convolutions:
    the form in which the weights are bundled. `batch_norm=True` gives the form that is trained from scratch; `folded`
    leads from it to the default one.
    """

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()

        def separable(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
            return _separable(c_in, c_out, stride, batch_norm=batch_norm)

        self.stem = _convolution(3, STEM[0], 4, 2, batch_norm=batch_norm)
        self.layer1 = nn.Sequential(separable(*STEM), separable(STEM[1], 128, 2), separable(128, 128))
        self.layer2 = nn.Sequential(separable(128, LAYER2, 2), separable(LAYER2, LAYER2))
        self.layer3 = nn.Sequential(separable(LAYER2, LAYER3, 2), *(separable(LAYER3, LAYER3) for _ in range(5)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map of `layer3`, [B, 256, H // 16, W // 16].

        Raises:
            ValueError: images that are not [B, 3, H, W], or smaller than a cell of `layer3`.
        """
        layer3: torch.Tensor = self.layer3(self.layer2(self._layer1(_checked(images))))
        return layer3

    def _layer1(self, images: torch.Tensor) -> torch.Tensor:
        """The map of `layer1`; on a CPU by a few images at a time.

        In float32 the maps of a whole batch, the largest of all, are beyond what malloc keeps: they would be mapped and
        cleared anew for every batch, which took up to a third of its time.
        """
        # Batch norm that learns, fx, the compiler and hooks are to see the batch as one.
        traced = isinstance(images, torch.fx.Proxy) or torch.compiler.is_compiling()
        if self.training or traced or images.device.type != "cpu" or len(images) == 0 or self._early_hooks():
            return self._early(images)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        chunks = images.split(max(1, CHUNK_BYTES // (images[0].numel() * dtype.itemsize)))
        return torch.cat([self._early(chunk) for chunk in chunks]) if len(chunks) > 1 else self._early(images)

    def _early(self, images: torch.Tensor) -> torch.Tensor:
        layer1: torch.Tensor = self.layer1(self.stem(images))
        return layer1

    def _early_hooks(self) -> bool:
        return any(m._forward_hooks for part in (self.stem, self.layer1) for m in part.modules())


def folded(trained: TinyBackbone) -> TinyBackbone:
    """A copy of a backbone trained with batch norm, in eval mode, its batch norm folded into the convolutions."""
    copy = TinyBackbone()
    units = [m for m in trained.eval().modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)]
    places = [m for m in copy.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)]
    for unit, place in zip(units, places, strict=True):
        convolution, norm = unit[0], unit[1]
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise TypeError(f"expected a backbone built with batch_norm=True, found {type(norm).__name__} in a unit")
        place[0].load_state_dict(fuse_conv_bn_eval(convolution, norm).state_dict())
    return copy.eval()
