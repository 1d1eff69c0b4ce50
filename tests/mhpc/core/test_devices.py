import pytest
import torch

from mhpc.core.devices import is_device_failure

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # documented, and not in the module's list


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"), True),
        (RuntimeError("CUDA driver error: device not ready"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built."), True),
        (RuntimeError("CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"), True),
        (LinAlgError("cusolver error: CUSOLVER_STATUS_INVALID_VALUE, when calling `cusolverDn`"), False),
        (torch.OutOfMemoryError("CUDA error: out of memory"), False),
        (RuntimeError("a rank is gone: CUDA error: unspecified launch failure"), False),  # another one's
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("CUDA error: no word of torch's"), False),
    ],
)
def test_a_device_has_failed_where_torch_says_so_in_whichever_way(error: Exception, failed: bool) -> None:
    assert is_device_failure(error) == failed
