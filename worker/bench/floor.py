"""The floor: the least time that an image can take on this machine, whoever writes the worker.

It is the forward pass, decoding, and the products that no method does without, counted in FLOP and charged at the rate
of a float32 product of this machine. On a CPU they share the cores, so their times add up; beside a GPU decoding runs
while the device computes, so the longer of the two counts.
"""

from dataclasses import dataclass

NEIGHBOUR_SHARE = 0.05  # of all distances to the bank; grouped anchors and bounds need no more for exact image scores
SCATTER_SHARE = 0.25  # of the patches: the moments lose nothing by seeing a quarter of them, drawn at random


@dataclass(frozen=True)
class Shape:
    """Of the problem: patches P of width D, whitened to d components, and a bank of K anchors."""

    patches: int
    width: int
    components: int
    anchors: int


@dataclass(frozen=True)
class Floor:
    """Milliseconds of an image, and the FLOP of each product that was counted."""

    forward_ms: float
    decode_ms: float
    products_ms: float
    flop: dict[str, float]
    overlapped: bool  # decoding runs beside the device

    @property
    def milliseconds(self) -> float:
        computing = self.forward_ms + self.products_ms
        return max(computing, self.decode_ms) if self.overlapped else computing + self.decode_ms

    @property
    def images_per_second(self) -> float:
        return 1000 / self.milliseconds


def products(shape: Shape, learning: bool) -> dict[str, float]:
    """FLOP per image: whitening and the share of distances in both phases, and learning's scatter matrix."""
    P, D, d, K = shape.patches, shape.width, shape.components, shape.anchors
    flop = {"whitening": 2.0 * P * D * d, "neighbours": NEIGHBOUR_SHARE * 2 * P * d * K}
    return {**flop, "scatter": SCATTER_SHARE * 2 * P * D * D} if learning else flop


def floor_of(
    shape: Shape, learning: bool, forward: float, decode: float, flop_per_second: float, overlapped: bool
) -> Floor:
    """From images per second of the forward pass and of decoding, and FLOP per second of products."""
    flop = products(shape, learning)
    return Floor(1000 / forward, 1000 / decode, 1000 * sum(flop.values()) / flop_per_second, flop, overlapped)
