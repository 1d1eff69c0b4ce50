"""What a device's failure means to whoever computes on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mhpc.core.devices import is_device_failure
from worker.errors import DeviceError

LESS_MEMORY = "lower model.max_batch or bank_size"
START_AGAIN = "start the worker again, as its supervisor should; what is not in a snapshot comes again"


@contextmanager
def device_failures(device: str, remedy: str = START_AGAIN) -> Iterator[None]:
    """Raises DeviceError where the device fails within, or has no memory for a single image.

    Args:
        remedy: against a failure; the process can use the device no more.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"{device} failed: {error}; {LESS_MEMORY}") from error
    except RuntimeError as error:
        if not is_device_failure(error):
            raise
        lacks = "_ALLOC_FAILED" in str(error)  # of a library; what torch lacks is an OutOfMemoryError
        raise DeviceError(f"{device} failed: {error}; {LESS_MEMORY if lacks else remedy}") from error
