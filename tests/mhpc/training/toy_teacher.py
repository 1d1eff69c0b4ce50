"""A teacher that costs nothing: two maps at strides 8 and 16 with fixed random weights."""

import torch
from torch import nn


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
