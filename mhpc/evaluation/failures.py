"""How a command ends that cannot go on: one line on stderr, and an exit code."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import typer
from safetensors import SafetensorError

from mhpc.core.backbones import BackboneError
from mhpc.core.devices import is_device_failure

FAILED, BAD_USAGE, MODEL_UNUSABLE, DEVICE_FAILED = 1, 2, 4, 5  # 3 is the worker's: Redis is not reached

NO_MEMORY = "can't allocate memory"  # what torch's allocator on a CPU says, in a plain RuntimeError


class DeviceError(RuntimeError):
    """A device that cannot be used; the text names it, the reason and the remedy."""


def check_device(name: str) -> None:
    """Raise DeviceError unless tensors can be made on the device, and read."""
    try:
        float(torch.zeros(1, device=name))  # GPU sync
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {name!r} cannot be used ({_first_line(error)}); give cpu, cuda or cuda:N") from None


@contextmanager
def refusals(command: str) -> Iterator[None]:
    """A failure that has an exit code becomes one line on stderr and that code; warnings are lines there, too."""

    def warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        kind = "" if category is UserWarning else f"{category.__name__}: "
        typer.echo(f"mhpc {command}: {kind}{message}", err=True)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            yield
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        text = str(error)
        if code == DEVICE_FAILED and not isinstance(error, DeviceError):
            text = f"the device failed ({_first_line(error)}); give it less at a time, or another --device"
        typer.echo(f"mhpc {command}: {' '.join(text.split())}", err=True)
        raise typer.Exit(code) from error


def exit_code(error: Exception) -> int | None:
    """The exit code that an exception stands for; None where its traceback is what helps."""
    if isinstance(error, BackboneError):  # a ValueError, too
        return MODEL_UNUSABLE
    if isinstance(error, ValueError):
        return BAD_USAGE
    if isinstance(error, DeviceError | torch.OutOfMemoryError | MemoryError) or is_device_failure(error):
        return DEVICE_FAILED
    if isinstance(error, RuntimeError) and NO_MEMORY in str(error):
        return DEVICE_FAILED
    if isinstance(error, OSError | SafetensorError) and not isinstance(
        error, BrokenPipeError
    ):  # `| head`: click ends quietly
        return FAILED
    return None


def _first_line(error: Exception) -> str:
    """Of torch's text; the lines after it tell how to debug kernels."""
    return next(iter(str(error).splitlines()), type(error).__name__)
