"""What a device's failure is told as, whichever of torch's ways it comes in."""

from typing import Any

import pytest
import torch

from tests.worker.helpers import small_settings
from worker.devices import device_failures
from worker.engine import Engine
from worker.errors import DeviceError
from worker.metrics import Metrics

CUBLAS = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"
NO_ROOM = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
CUDNN = "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.AcceleratorError("the device is gone"), "cuda failed: the device is gone; start the worker again"),
        (RuntimeError(CUBLAS), f"cuda failed: {CUBLAS}; start the worker again"),
        (RuntimeError(NO_ROOM), f"cuda failed: {NO_ROOM}; lower model.max_batch or bank_size"),
        (torch.OutOfMemoryError("no room"), "cuda failed: no room; lower model.max_batch or bank_size"),
    ],
)
def test_a_device_that_failed_is_told_with_the_remedy(error: Exception, told: str) -> None:
    with pytest.raises(DeviceError) as caught, device_failures("cuda"):
        raise error
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), KeyError("x")])
def test_what_is_no_failure_of_a_device_is_passed_on_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, device_failures("cuda"):
        raise error
    assert caught.value is error


def test_a_library_of_the_device_that_fails_at_the_start_is_the_device_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(CUDNN)

    monkeypatch.setattr("worker.engine.PatchFeatures.__call__", fails)
    with pytest.raises(DeviceError, match=CUDNN), device_failures("cuda"):
        Engine(small_settings().model, torch.device("cpu"), Metrics())
