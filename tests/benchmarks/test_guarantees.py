"""What the benchmark of the guarantees counts is all that there is, and each second once."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks import guarantees
from tests.benchmarks.guarantees import COMMANDS, METHODS, Spent
from worker.streams.client import script
from worker.streams.line_streams import LineStreams

FENCED = {"renew", "release", "read_learning", "commit", "show", "acknowledge", "fenced"}  # by a command of fenced.lua


def test_each_command_on_a_line_is_counted_or_is_reading() -> None:
    methods = {name for name, what in vars(LineStreams).items() if callable(what) and not name.startswith("_")}
    assert methods - FENCED == set(METHODS)
    assert set(re.findall(r"what == '(\w+)'", script("fenced"))) == set(COMMANDS)


def test_a_call_within_another_counts_once_and_reading_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(guarantees, "time", SimpleNamespace(perf_counter=lambda: now))

    def wait(*_: Any) -> None:
        nonlocal now
        now += 0.05

    def trim() -> None:
        streams.fenced(1, "trim")
        wait()

    streams: Any = SimpleNamespace(**dict.fromkeys(METHODS, wait), fenced=wait)
    streams.trim = trim
    spent = Spent()
    spent.measure(streams)
    streams.trim()
    streams.fenced(1, "renew")
    streams.fenced(1, "read")
    streams.own_pending()
    assert spent.seconds == pytest.approx({"trim": 0.1, "lease": 0.05})


def test_a_command_that_the_benchmark_does_not_know_is_an_error() -> None:
    streams: Any = SimpleNamespace(**dict.fromkeys(METHODS, print), fenced=print)
    Spent().measure(streams)
    with pytest.raises(KeyError):
        streams.fenced(1, "unheard of")
