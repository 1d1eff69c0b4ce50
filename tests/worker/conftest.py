"""What the worker's tests share."""

import os
import uuid

import pytest

from tests.worker.helpers import small_settings
from worker.engine import Engine, pick_device
from worker.metrics import Metrics


@pytest.fixture
def line() -> str:
    """A line that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def _no_outer_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MHPC_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A real backbone on the CPU, small inputs: 8 x 8 patches of 384 features."""
    return Engine(small_settings().model, pick_device("cpu"), Metrics())
