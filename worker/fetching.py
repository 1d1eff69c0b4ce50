"""What a GPU has computed, brought to the CPU while it computes on."""

from collections.abc import Callable

import torch
from torch import Tensor


def fetch(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Begin to copy tensors of one device to the CPU; what is returned waits for the copies and gives them."""
    device = tensors[0].device
    if device.type == "cpu":
        return lambda: tensors
    # Copies out of pinned memory alone run beside the CPU.
    copies = tuple(
        torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t.detach(), non_blocking=True) for t in tensors
    )
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))

    def wait() -> tuple[Tensor, ...]:
        arrived.synchronize()  # GPU sync
        return copies

    return wait
