"""What a piece of work costs: seconds and peak memory."""

import ctypes
import gc
import resource
import time
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


class Meter:
    """Measures a `with` block: `seconds` by the clock; `peak_mib`, the most memory held beyond what was held before.

    On CUDA that is what torch allocated there. On the CPU it is resident memory; the kernel's high-water mark is reset
    first (Linux, /proc/self/clear_refs), after what lies free in the heap has been handed back. Where the mark cannot
    be reset, `peak_mib` is None unless the block went beyond all that the process ever held.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_mib: float | None = None

    def __enter__(self) -> "Meter":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before: int | None = torch.cuda.memory_allocated(self.device)
        else:
            _trim_heap()
            self._reset = _reset_high_water()
            self._mark = _high_water()
            self._before = _resident()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        if self.device.type == "cuda" and self._before is not None:
            self.peak_mib = (torch.cuda.max_memory_allocated(self.device) - self._before) / MIB
        elif self._before is not None and (self._reset or _high_water() > self._mark):
            self.peak_mib = max(0, _high_water() - self._before) / MIB


def _resident() -> int | None:
    """Bytes that the process holds now; None where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _high_water() -> int:
    """The most bytes that the process held, since the mark was reset."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _trim_heap() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
