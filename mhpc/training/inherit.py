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

    The teacher's convolutions are taken in the order in which they were registered, with ReLU6 after each.

    Raises:
        BackboneError: the teacher is laid out otherwise, or either has a convolution without bias.
    """
    ours = _convolutions(student)
    theirs = _convolutions(teacher)[: len(ours)]
    _check(ours, theirs)
    wider = [source for conv, source in zip(ours, theirs, strict=True) if source.out_channels > conv.out_channels]
    responses = _responses(teacher, wider, images)
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
        conv.weight.copy_(_placed(weight, conv, source.padding))
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
        if not _fits(conv, source):
            raise BackboneError(
                f"the teacher's convolution {index} is {source}, the student's {conv}: it can start only from a "
                "teacher of its own layout, as MobileNet v1; train from scratch instead"
            )


def _fits(conv: nn.Conv2d, source: nn.Conv2d) -> bool:
    """Whether the teacher's convolution can stand in the student's place, pruned if it is wider."""
    kernel = (3, 3) if conv.kernel_size == (4, 4) else conv.kernel_size
    depthwise = source.groups == source.in_channels if conv.groups > 1 else source.groups == 1
    same = source.kernel_size == kernel and source.stride == conv.stride and source.dilation == (1, 1)
    return depthwise and same and source.out_channels >= conv.out_channels


def _responses(teacher: nn.Module, convolutions: list[nn.Conv2d], images: Tensor) -> dict[nn.Conv2d, Tensor]:
    """[C, N] float32 of each convolution: what of its output passes ReLU6, over all N cells of all images."""
    found: dict[nn.Conv2d, Tensor] = {}

    def remember(conv: nn.Conv2d) -> RemovableHandle:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            found[conv] = output.clamp(0, 6).transpose(0, 1).flatten(1).float()

        return conv.register_forward_hook(keep)

    handles = [remember(conv) for conv in convolutions]
    try:
        teacher(images)
    finally:
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


def _placed(weight: Tensor, conv: nn.Conv2d, padding: object) -> Tensor:
    """A 3x3 kernel where it sees the same within the student's 4x4 one of stride 2, which sees pixels 2i - 1 to 2i + 2.

    One that is padded by itself sees 2i - 1 to 2i + 1; one whose images are padded at the lower right (SAME, as
    TensorFlow has it) sees 2i to 2i + 2.
    """
    if weight.shape[-1] == conv.kernel_size[0]:
        return weight
    placed = torch.zeros_like(conv.weight)
    place = slice(0, 3) if padding == (1, 1) else slice(1, 4)
    placed[:, :, place, place] = weight
    return placed
