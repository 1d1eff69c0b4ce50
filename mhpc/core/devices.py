"""How torch tells that a device has failed."""

import torch

# cuBLAS, cuDNN, cuSOLVER and the driver do so in plain RuntimeErrors; the CUDA runtime alone has a kind of its own.
STATUSES = ("CUDA error: ", "CUDA driver error: ", "cuDNN error: ", "cuDNN Frontend error: ", "cusolver error: ")

OF_WHAT_IT_IS_GIVEN = (
    torch.OutOfMemoryError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # documented, and not in the module's list
)


def is_device_failure(error: BaseException) -> bool:
    """Whether a device or one of its libraries has failed, so that anything else may fail there, too.

    A lack of memory is none, unless it is a library that finds none for itself, nor is a matrix that cuSOLVER finds no
    decomposition of.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, OF_WHAT_IT_IS_GIVEN):
        return False
    text = str(error)
    return isinstance(error, torch.AcceleratorError) or text.startswith(STATUSES) or "CUDNN_STATUS" in text
