"""A start from the teacher's own weights, where it is laid out as the student: depthwise-separable, one path.

What is as wide is copied; what is wider is pruned: channels are chosen by greedy column subset selection (Farahat et
al., 2011, arXiv:1112.5215), and what those that are gone would have brought is predicted linearly from those that are
kept. Training has only to mend what pruning broke.
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mhpc.core.backbones import BackboneError
from mhpc.core.tiny import TinyBackbone

RIDGE = 1e-3  # of the mean variance, in the prediction of what is gone
SMALLEST = 1e-6  # of the largest variance: what is left of a channel that others explain is rounding


@torch.no_grad()
def inherit(student: TinyBackbone, teacher: nn.Module, images: Tensor) -> None:
    """Give the student, without batch norm, the teacher's weights, pruned by what it makes of images [B, 3, H, W].

    Raises:
        BackboneError: the teacher is laid out otherwise.
    """
    ours = _convolutions(student)
    theirs = _convolutions(teacher)[: len(ours)]
    _check(ours, theirs)
    responses = _responses(
        teacher, [t for o, t in zip(ours, theirs, strict=True) if t.out_channels > o.out_channels], images
    )
    kept, inputs = torch.arange(3), None
    for conv, source in zip(ours, theirs, strict=True):
        weight, bias, response = source.weight, _bias(source), responses.get(source)
        if source.groups > 1:  # depthwise: each channel has its own kernel
            weight, bias = weight[kept], bias[kept]
        else:
            if inputs is not None:
                weight, bias = _without_gone(weight, bias, inputs, kept)
            kept = torch.arange(len(weight)) if response is None else _chosen(response, conv.out_channels)
            weight, bias = weight[kept], bias[kept]
        conv.weight.copy_(_placed(weight, conv, first=conv is _convolutions(student.layer2)[0]))
        _bias(conv).copy_(bias)
        inputs = response


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise BackboneError("a convolution has no bias: fold the batch norm of student and teacher into them first")
    return conv.bias


def _check(ours: list[nn.Conv2d], theirs: list[nn.Conv2d]) -> None:
    if len(theirs) < len(ours):
        raise BackboneError(f"the teacher has {len(theirs)} convolutions, expected at least {len(ours)} to start from")
    for index, (conv, source) in enumerate(zip(ours, theirs, strict=True)):
        alike = (source.groups > 1) == (conv.groups > 1) and source.stride == conv.stride
        fits = source.kernel_size <= conv.kernel_size and source.out_channels >= conv.out_channels
        if not alike or not fits:
            raise BackboneError(
                f"the teacher's convolution {index} is {source}, the student's {conv}: it can start only from a "
                "teacher of its own layout, as MobileNet v1; train from scratch instead"
            )


def _responses(teacher: nn.Module, convolutions: list[nn.Conv2d], images: Tensor) -> dict[nn.Conv2d, Tensor]:
    """[C, N] float32 of each convolution: what of its output passes ReLU6, over all N cells of all images."""
    found: dict[nn.Conv2d, Tensor] = {}

    def remember(conv: nn.Conv2d) -> RemovableHandle:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            found[conv] = output.clamp(0, 6).transpose(0, 1).flatten(1).float()

        return conv.register_forward_hook(keep)

    handles = [remember(conv) for conv in convolutions]
    teacher(images)
    for handle in handles:
        handle.remove()
    return found


def _chosen(response: Tensor, width: int) -> Tensor:
    """Indices [width], ascending, of the channels [C, N] that explain most of the variance of all of them."""
    centred = response - response.mean(1, keepdim=True)
    residual = centred @ centred.T
    smallest = SMALLEST * residual.diagonal().max()
    chosen: list[int] = []
    for _ in range(width):
        variance = residual.diagonal().clamp_min(smallest)
        gain = residual.square().sum(0) / variance
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        chosen.append(best)
        residual = residual - torch.outer(residual[:, best], residual[best]) / variance[best]
    return torch.tensor(sorted(chosen), device=response.device)


def _without_gone(weight: Tensor, bias: Tensor, inputs: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """A 1x1 kernel [O, C, 1, 1] and its bias [O] for the kept of inputs [C, N] alone, the others predicted by these."""
    mean = inputs.mean(1)
    covariance = torch.cov(inputs)
    gone = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    gone[kept] = False
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(kept), device=inputs.device)
    predicted = torch.linalg.solve(covariance[kept][:, kept] + ridge, covariance[kept][:, gone])  # [kept, gone]
    w = weight[:, :, 0, 0]
    narrow = w[:, kept] + w[:, gone] @ predicted.T
    return narrow[:, :, None, None], bias + w @ mean - narrow @ mean[kept]


def _placed(weight: Tensor, conv: nn.Conv2d, first: bool) -> Tensor:
    """A 3x3 kernel in the student's 4x4 one of stride 2, last row and column filled, or the first.

    A teacher that pads at the lower right alone (SAME, TensorFlow) sees pixels 2i to 2i + 2, the last places of the
    student's 2i - 1 to 2i + 2. All at the last, cells at stride 8 would lie at pixels 8i + 7, the middle being 8i +
    3.5; with the third at the first places they lie at 8i + 3, with the same values.
    """
    if weight.shape[-1] == conv.kernel_size[0]:
        return weight
    placed = torch.zeros_like(conv.weight)
    place = slice(0, 3) if first else slice(1, 4)
    placed[:, :, place, place] = weight
    return placed
