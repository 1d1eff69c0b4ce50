"""What is read once for all who look, and how long it stands."""

import pytest
import redis

from worker.console.cached import Cached


class Source:
    """Something to read, at a time that is set, and away when told so."""

    def __init__(self) -> None:
        self.now, self.away = 100.0, False

    def read(self) -> float:
        if self.away:
            raise redis.ConnectionError(f"at {self.now}")
        return self.now


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source()
    monkeypatch.setattr("worker.console.cached.time.monotonic", lambda: source.now)
    return source


def test_an_error_stands_a_second_where_a_value_stands_for_longer(source: Source) -> None:
    cached = Cached(10.0, source.read)
    source.away = True
    for source.now, at in ((100.0, 100.0), (100.9, 100.0), (101.1, 101.1)):
        with pytest.raises(redis.ConnectionError, match=f"at {at}"):
            cached.get()
    source.away = False
    for source.now, at in ((102.2, 102.2), (112.1, 102.2), (112.3, 112.3)):
        assert cached.get() == at


def test_an_error_stands_no_longer_than_a_value_would(source: Source) -> None:
    cached = Cached(0.15, source.read)
    source.away = True
    with pytest.raises(redis.ConnectionError):
        cached.get()
    source.away, source.now = False, 100.2
    assert cached.get() == 100.2
