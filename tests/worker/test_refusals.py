"""Lines that are left alone."""

import pytest
from structlog.testing import capture_logs

from worker.refusals import Refusals


def test_what_is_wrong_is_logged_once_and_again_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("worker.refusals.time.monotonic", lambda: clock[0])
    refusals = Refusals()
    with capture_logs() as logs:
        for _ in range(3):
            refusals.add("a", "OOM command not allowed")
            refusals.went_on(["b"])
            clock[0] += 2
            assert refusals.tried_again() == ["a"]
        refusals.went_on(["a", "b"])
        refusals.add("a", "OOM command not allowed")
    assert [(entry["log_level"], entry["line"]) for entry in logs] == [("error", "a"), ("info", "a"), ("error", "a")]
    assert "a" in refusals
