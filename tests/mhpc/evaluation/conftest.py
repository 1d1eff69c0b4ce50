import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # publishes no types

from tests.mhpc.evaluation.parts import write_category


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Maps of a few cells lose more to the threads' barriers than they gain, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # what lives already: the meter collects garbage, which else takes longer than all else here
    with threadpool_limits(1):
        yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture
def category(tmp_path: Path) -> Path:
    """A folder with one category: 42 good parts to learn from, 8 good and 8 defective to score, with masks."""
    return write_category(tmp_path / "plates")


@pytest.fixture(scope="session")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for tests that only read it."""
    return write_category(tmp_path_factory.mktemp("parts") / "plates")


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Too few parts for a threshold: 6 to learn from, 3 good and 3 defective to score."""
    return write_category(tmp_path_factory.mktemp("parts") / "few", train=6, good=3, defective=3)


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def hide() -> None:
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
        for name in ("mhpc.evaluation.plots", "mhpc.evaluation.pictures"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "matplotlib", None)

    return hide
