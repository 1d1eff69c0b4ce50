"""Lines that are left alone."""

import pytest
from structlog.testing import capture_logs

from worker.refusals import QUIET_SECONDS, Refusals


def test_what_is_wrong_is_logged_once_and_again_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("worker.refusals.time.monotonic", lambda: clock[0])
    refusals = Refusals()
    with capture_logs() as logs:
        for _ in range(30):
            refusals.add("a", "OOM command not allowed")
            clock[0] += 2
            assert refusals.tried_again() == ["a"]
            refusals.went_on({"a"})  # a turn goes well, and the next one does not
        clock[0] += QUIET_SECONDS
        refusals.went_on({"a"})
        refusals.add("a", "OOM command not allowed")
    assert [(entry["log_level"], entry["line"]) for entry in logs] == [("error", "a"), ("info", "a"), ("error", "a")]
    assert "a" in refusals


def test_a_line_that_is_served_no_more_goes_on_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("worker.refusals.time.monotonic", lambda: clock[0])
    refusals = Refusals()
    refusals.add("a", "OOM command not allowed")
    refusals.forget("a")
    clock[0] += 2 * QUIET_SECONDS
    with capture_logs() as logs:
        refusals.went_on({"a"})
    assert logs == []
    assert refusals.problems == {}


def test_a_line_that_is_not_served_has_not_gone_on_by_being_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("worker.refusals.time.monotonic", lambda: clock[0])
    refusals = Refusals()
    refusals.add("a", "NOGROUP No such key")
    clock[0] += 2 * QUIET_SECONDS
    with capture_logs() as logs:
        refusals.went_on({"b"})
        assert logs == []
        refusals.went_on({"a", "b"})
    assert [(entry["event"], entry["line"]) for entry in logs] == [("the line goes on", "a")]
