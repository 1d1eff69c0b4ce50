import pytest

from tests.worker.streams.acting import HOLDER
from worker.streams.line_streams import LineStreams


@pytest.fixture
def epoch(streams: LineStreams) -> int:
    """The epoch of HOLDER, who keeps the line."""
    return streams.acquire(HOLDER, 0)[0]
