"""The bundled backbone: 0.48 M parameters, depthwise-separable, laid out for the CPU.

Depthwise-separable convolutions are those of MobileNet v1 (Howard et al., 2017, arXiv:1704.04861, section 3.1).
Every downsampling kernel is even (4 x 4, stride 2, padding 1), so the cells of each map lie exactly at the centres
of the pixels that they stand for, and a heat map scaled up from them is not shifted.
"""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Channels of the maps at strides 4, 8 and 16; `layer2` and `layer3` are those the memory bank sees.
LAYER1, LAYER2, LAYER3 = 96, 192, 288


def _convolution(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, *, batch_norm: bool
) -> nn.Sequential:
    padding = (kernel - 1) // 2
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=not batch_norm)
    if batch_norm:
        return nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))
    return nn.Sequential(convolution, nn.Identity(), nn.ReLU(inplace=True))


def _separable(c_in: int, c_out: int, stride: int = 1, *, batch_norm: bool) -> nn.Sequential:
    kernel = 4 if stride == 2 else 3
    return nn.Sequential(
        _convolution(c_in, c_in, kernel, stride, groups=c_in, batch_norm=batch_norm),
        _convolution(c_in, c_out, 1, batch_norm=batch_norm),
    )


def _layer(c_in: int, c_out: int, blocks: int, stride: int, *, batch_norm: bool) -> nn.Sequential:
    first = _separable(c_in, c_out, stride, batch_norm=batch_norm)
    return nn.Sequential(first, *(_separable(c_out, c_out, batch_norm=batch_norm) for _ in range(blocks - 1)))


class TinyBackbone(nn.Module):
    """Feature maps of [B, 3, H, W] float32 images, normalised with ImageNet's mean and deviation.

    `layer2` gives [B, 192, H // 8, W // 8] and `layer3`, the output, [B, 288, H // 16, W // 16]; the children run in
    the order `stem`, `layer1`, `layer2`, `layer3`. As built by default, batch norm is folded into the convolutions:
    the form in which the weights are bundled. `batch_norm=True` gives the form that is trained; `folded` leads from
    it to the default one.
    """

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, 32, 4, 2, batch_norm=batch_norm), _separable(32, 64, 2, batch_norm=batch_norm)
        )
        self.layer1 = _layer(64, LAYER1, blocks=2, stride=1, batch_norm=batch_norm)
        self.layer2 = _layer(LAYER1, LAYER2, blocks=4, stride=2, batch_norm=batch_norm)
        self.layer3 = _layer(LAYER2, LAYER3, blocks=4, stride=2, batch_norm=batch_norm)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map of `layer3`, [B, 288, H // 16, W // 16]."""
        layer3: torch.Tensor = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return layer3


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
