"""Numbers and texts that no worker writes, but that anybody can: they cost no more than themselves."""

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import redis

from tests.worker.console.site import Event, Filled, Site, first
from worker.console import rows
from worker.console.source import log_once

PARTS_OF_ALL = ("points", "status", "calibration", "review", "journal")


def looked_at(site: Site, line: str) -> dict[str, Any]:
    """Every page and stream of a line; what its own stream says."""
    for path in ("/", f"/lines/{line}"):
        assert site.get(path).status_code == 200
    with site.events("/events") as told:
        assert line in [row["line"] for row in first(told, "fleet")]
    with site.events(f"/lines/{line}/events") as told:
        return {name: first(told, name) for name in PARTS_OF_ALL}


@pytest.mark.parametrize(
    ("score", "threshold"),
    [(1e308, 1e-308), (1.7976931348623157e308, 2.0), (1e30, 5e-324), (-1e308, 2.0), (2**63, 2.0), (1.0, 1e-320)],
)
def test_a_number_that_is_no_measurement_stops_nobodys_page(
    site: Site, filled: Filled, score: float, threshold: float
) -> None:
    result = {"id": "a", "entry": "7-0", "score": score, "threshold": threshold, "anomalous": True}
    key = filled.put("scores", result=msgpack.packb(result))
    part = filled.put(
        "review", entry="7-0", id="a", why="anomalous", score=score, threshold=threshold, model="", image=b""
    )
    told = looked_at(site, filled.line)
    assert [point[0] for point in told["points"]] == [key]
    assert all(value is None or abs(value) <= 1e30 for value in told["points"][0][3:5]), "more has no place in a chart"
    for kind, name in (("scores", key), ("review", part)):
        assert site.get(f"/lines/{filled.line}/{kind}/{name}").status_code == 200
    assert site.get(f"/lines/{filled.line}/review/{part}?order=largest").status_code == 200


@pytest.mark.parametrize(
    "state",
    [
        {"progress": "\u00b2/\u00b2", "phase": "learning"},
        {"progress": f"1/{'9' * 400}", "phase": "learning"},
        {"progress": "9" * 5000 + "/1", "phase": "learning"},
        {"calibration": f'{{"low": 0.5, "high": 1.5, "counts": [1, {"9" * 400}]}}'},
        {"calibration": f'{{"low": {"9" * 400}, "high": 1.5, "counts": [1]}}'},
        {"threshold": "1e308", "rate": "1e308", "drift": "1e308", "rate_interval": "nan inf"},
        {"threshold": "nan", "rate": "nan", "drift": "-inf", "rate_interval": "1 2 3"},
        {"quarantined": "9" * 400},
        {"epoch": "9" * 5000},
    ],
)
def test_a_state_that_no_keeper_writes_stops_nobodys_page(site: Site, filled: Filled, state: dict[str, str]) -> None:
    filled.state(**state)
    told = looked_at(site, filled.line)
    assert told["calibration"] is None
    assert told["status"]["progress"] is None


def test_what_nobody_thought_of_is_the_problem_of_its_line_and_logged_once(
    site: Site, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"{filled.line}-other"
    Filled(filled.client, other)

    def fail(status: dict[str, Any], seen: object) -> Any:
        if status["line"] == filled.line and not status.get("problem"):
            raise ZeroDivisionError("of all things")
        return alarms(status, seen)  # type: ignore[arg-type]  # only handed on

    alarms = rows.alarms
    monkeypatch.setattr(rows, "alarms", fail)
    log_once.cache_clear()
    with site.events("/events") as told:
        for _ in range(2):
            states = {row["line"]: row for row in first(told, "fleet")}
    assert states[filled.line]["state"] == "problem"
    assert "ZeroDivisionError: of all things" in states[filled.line]["problem"]
    assert states[other]["state"] == "scoring"
    assert log_once.cache_info().misses == 1
    assert log_once.cache_info().hits > 0


def test_a_turn_that_fails_is_told_and_the_next_one_goes_on(
    site: Site, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.console.events.calibration", lambda _: float("inf"))
    with site.events(f"/lines/{filled.line}/events") as told:
        assert "ValueError: Out of range float" in first(told, "away")
        monkeypatch.setattr("worker.console.events.calibration", lambda _: None)
        assert first(told, "away") == ""


def test_a_key_that_may_not_be_read_is_told_until_all_can_be_read_again(
    site: Site, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> Any:
        raise redis.exceptions.NoPermissionError("no right to xrevrange")

    with monkeypatch.context() as patch, site.events(f"/lines/{filled.line}/events") as told:
        patch.setattr("worker.console.lines.journal", refuse)
        assert "no right to xrevrange" in first(told, "away")
        for number in range(8):
            filled.result(str(number))
            assert points_but_no_away(told)[0][2] == str(number), "the alert stands: nothing says that it passed"


def points_but_no_away(told: Iterator[Event]) -> Any:
    for name, value in told:
        assert name != "away"
        if name == "points":
            return value
    raise AssertionError("the stream ended")
