"""Which pictures that were learned from do not belong with the rest, judged once all of them are known."""

from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.linalg import blocks

FROM, FULL = 1.5, 3.0  # robust deviations of the logarithm; between them doubt grows from none to full
MAX_SHARE = 0.1  # of the pictures, at most so many are in doubt
MIN_PICTURES = 32  # without which nobody can tell


class Doubt(NamedTuple):
    """`lift` [K]: squared distance that doubt adds to each anchor; `set_aside`: numbers of pictures in full doubt."""

    lift: Tensor
    set_aside: Tensor


def find_doubt(images: Tensor, picture: Tensor, own: Tensor, support: Tensor, radius: float) -> Doubt:
    """Doubt in anchors images [K, d] that were born from pictures numbered picture [K] (-1: of earlier days).

    A defective part among those learned from leaves anchors that no other picture has use for, and that look unlike
    the rest of their own picture, too. A rare but normal part leaves lone anchors as well, but its patches resemble
    one another; the corners of a fixed part look unlike the rest of it, but support many pictures. With n the distance
    to the nearest anchor of another picture, o, own [K], the distance to the mean of its own picture, and s, support
    [K], the pictures with a patch nearest to it, an anchor is alone by sqrt(n o / s), and a picture by the largest of
    its anchors' figures. Pictures for which the logarithm of it lies FROM robust deviations above the median are in
    doubt, in full from FULL on. A doubt of g lifts an anchor out of the space by a squared distance of
    g (n^2 - radius^2) / s, if it is farther from the others than the radius: in full doubt, and with no other picture's
    support, as far as if it were not there.

    Lifting costs a clean stream less than removing: a rare normal part is still nearer to its anchors than a defect.
    """
    lift, nobody = torch.zeros_like(own), torch.empty(0, dtype=torch.int64)
    numbers, index = picture.unique(return_inverse=True)
    present = numbers >= 0
    n = int(present.sum())  # GPU sync
    if n < MIN_PICTURES:
        return Doubt(lift, nobody)
    others, shared = _others(images, picture), support.clamp_min(1).to(own.dtype)
    alone = (others * own / shared).sqrt()
    by_picture = torch.zeros(len(numbers), dtype=own.dtype, device=own.device).scatter_reduce(0, index, alone, "amax")
    logs = by_picture.clamp_min(torch.finfo(by_picture.dtype).tiny).log()
    deviation = _robust_deviations(logs, present)
    least = deviation[present].sort(descending=True).values[int(MAX_SHARE * n)]  # what the share leaves no room for
    doubt = ((deviation - FROM) / (FULL - FROM)).clamp(0, 1) * (present & (deviation > least))
    excess = (others.square() - radius**2).clamp_min(0)
    return Doubt(doubt[index] * excess / shared, numbers[doubt >= 1].cpu())


def _others(images: Tensor, picture: Tensor) -> Tensor:
    """Distance [K] of each anchor to the nearest one of another picture."""
    half_squares = images.square().sum(1) / 2
    nearest = []
    for rows, numbers in zip(
        blocks(images, len(images)), picture.split(len(blocks(images, len(images))[0])), strict=True
    ):
        products = torch.addmm(half_squares, rows, images.T, alpha=-1)
        products.masked_fill_((numbers[:, None] == picture) & (numbers[:, None] >= 0), torch.inf)
        nearest.append((rows - images[products.argmin(1)]).norm(dim=1))
    return torch.cat(nearest)


def _robust_deviations(x: Tensor, among: Tensor) -> Tensor:
    """x [n] in deviations above the median, both of those `among` alone; none where they are all the same."""
    median = x[among].median()
    deviation = 1.4826 * (x[among] - median).abs().median()
    return torch.where(deviation > 0, (x - median) / deviation, torch.zeros_like(x))
