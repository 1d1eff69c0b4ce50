"""A teacher that costs nothing: two maps at strides 8 and 16 with fixed random weights."""

import torch
from torch import nn
from torch.nn import functional


class ToyTeacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 5, 8, 8)
        self.coarse = nn.Conv2d(5, 7, 2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.coarse(torch.relu(self.fine(images)))
        return maps


def toy_teacher() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ToyTeacher()


def no_network() -> str:
    return "no network"


class SeparableTeacher(nn.Module):
    """MobileNet v1 up to stride 16, without batch norm: padded at the lower right, as TensorFlow does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, 2)
        widths = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, width, 2)]
        for index, (c_in, c_out, stride) in enumerate([*widths, *[(width, width, 1)] * 5], 1):
            depthwise = nn.Conv2d(c_in, c_in, 3, stride, 0 if stride == 2 else 1, groups=c_in)
            self.add_module(f"block{index}", nn.ModuleList([depthwise, nn.Conv2d(c_in, c_out, 1)]))
        self.fine, self.coarse = nn.Identity(), nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.conv(functional.pad(images, (0, 1, 0, 1))))
        for index in range(1, 12):
            depthwise, pointwise = self.get_submodule(f"block{index}").children()
            padded = functional.pad(x, (0, 1, 0, 1)) if index in (2, 4, 6) else x
            x = functional.relu6(pointwise(functional.relu6(depthwise(padded))))
            x = self.fine(x) if index == 5 else x
        maps: torch.Tensor = self.coarse(x)
        return maps


def separable_teacher(width: int = 512, seed: int = 0) -> SeparableTeacher:
    """Its first map is `fine`, its last `coarse` [B, width, H // 16, W // 16]; scaled so that no map dies out.

    As in MobileNet v1 as it was trained, eight channels of the first layer never fire.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = SeparableTeacher(width).eval()
        for parameter in teacher.parameters():
            if parameter.dim() == 4:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.uniform_(parameter, 0, 0.2)
        never = torch.zeros(32, dtype=torch.bool)
        never[4:12] = True
        bias = torch.where(never, -100.0, teacher.conv.state_dict()["bias"])
        teacher.conv.load_state_dict({**teacher.conv.state_dict(), "bias": bias})
    return teacher
