"""A GPU's work, recorded once for a number of images and replayed: one launch in place of hundreds."""

from collections.abc import Callable

import structlog
import torch
from torch import Tensor

WARM_UPS = 2  # before recording: libraries make their handles and choose their kernels in the first

log = structlog.get_logger()


class Replayed:
    """A function of a batch of images, replayed as a CUDA graph.

    There is one graph for each power of two of images, recorded when it is first wanted; a batch in between is filled
    up. A backbone that cannot be recorded (it looks at values, or copies to the CPU) runs operation by operation.

    Args:
        function: from images [B, ...] on the device to a tensor [B, ...]; each image's result is its own.
        device: a CUDA device.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.function = function
        self.device = device
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared: what a replay leaves is copied before the next
        self._works = True

    def __call__(self, images: Tensor) -> Tensor:
        """Of images [B, ...] on the CPU; pinned ones are copied while the caller goes on."""
        B = len(images)
        graph = self._graph(images) if self._works else None
        if graph is None:
            return self.function(images.to(self.device, non_blocking=True))
        replayed, given, result = graph
        given[:B].copy_(images, non_blocking=True)
        replayed.replay()
        return result[:B].clone()

    def _graph(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None:
        size = 1 << (len(images) - 1).bit_length()
        if size not in self._graphs:
            given = torch.zeros(size, *images.shape[1:], dtype=images.dtype, device=self.device)
            try:
                self._graphs[size] = self._recorded(given)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._works = False
                log.warning("no CUDA graph can be recorded; the backbone runs op by op", error=str(error)[:300])
                return None
        return self._graphs[size]

    def _recorded(self, given: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        beside = torch.cuda.Stream(self.device)
        beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self.function(given)
        torch.cuda.current_stream(self.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate pinned memory meanwhile.
        with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
            result = self.function(given)
        return graph, given, result
