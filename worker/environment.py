"""Who runs a process, and what libraries find in its environment as they load. Imports neither NumPy nor torch."""

import getpass
import os

# torch's tensors of 2 MiB and more on huge pages: fresh memory, of which learning takes a lot, costs half as much time.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
# NumPy's products here are small: threads of its own would only fight torch's for the cores.
# Between parallel regions libgomp's threads spin, by default so long that decoding, publishing and Redis wait for a
# core: on two cores `tiny` scores a third more images so (docs/performance.md).
OF_A_WORKER = {"OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000", **HUGE_PAGES}


def set_unless_set(variables: dict[str, str]) -> None:
    """Whoever starts the process has the last word."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def user_name() -> str:
    """Of who runs this; a container's users may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        return f"uid {os.getuid()}"
