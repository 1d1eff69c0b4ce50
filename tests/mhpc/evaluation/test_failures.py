import numpy as np
import pytest
import torch
import typer
from safetensors import SafetensorError

from mhpc.core.backbones import BackboneError
from mhpc.evaluation.failures import DeviceError, check_device, exit_code, refusals


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (BackboneError("x"), 4),
        (DeviceError("x"), 5),
        (torch.OutOfMemoryError("x"), 5),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), 5),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 5),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), 5),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"), 5),
        (MemoryError(), 5),
        (OSError(28, "No space left on device"), 1),
        (SafetensorError("Error while serializing: I/O error"), 1),
        (BrokenPipeError(32, "Broken pipe"), None),
        (RuntimeError("shapes cannot be multiplied"), None),
        (KeyError("x"), None),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: Exception, code: int | None) -> None:
    assert exit_code(error) == code


def test_a_cpu_without_the_memory_asked_for_is_a_device_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    for allocate in (torch.empty, np.empty):
        with pytest.raises(typer.Exit) as ended, refusals("evaluate"):
            allocate((10**9, 10**6))
        assert ended.value.exit_code == 5
        said = capsys.readouterr().err
        assert said.startswith("mhpc evaluate: the device failed (")
        assert said.count("\n") == 1


def test_a_mistake_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), refusals("evaluate"):
        raise KeyError("x")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named_with_the_remedy(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"device '{name}' cannot be used \(.+\); give cpu, cuda or cuda:N"):
        check_device(name)
    check_device("cpu")
