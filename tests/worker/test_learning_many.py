"""When the lines that a worker keeps are seen to, beside the answers of all."""

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from tests.worker.test_learning import keeping
from worker.daemon import Worker
from worker.keeping.keeper import Keeper
from worker.learning import COMMANDS_SECONDS, KEEP_SECONDS
from worker.streams.control import send


def test_a_line_that_learns_is_seen_to_in_each_turn_and_one_that_only_answers_where_it_is_due(
    settings: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learns, answers, seen = f"{line}-a", f"{line}-b", list[str]()
    now = [0.0]

    def note(keeper: Keeper, _: Any) -> None:
        seen.append(keeper.line.name)

    def turned(worker: Worker, seconds: float) -> list[str]:
        now[0] += seconds
        seen.clear()
        worker.learning.turn(worker.client, worker.keepers, note)
        return sorted(seen)

    with keeping(settings(learns, answers)) as worker, monkeypatch.context() as patched:
        worker.keepers[answers].line.paused = True
        now[0] = time.monotonic()
        patched.setattr("worker.learning.time", SimpleNamespace(monotonic=lambda: now[0]))
        assert turned(worker, COMMANDS_SECONDS) == [learns, answers]
        assert turned(worker, 0.9 * KEEP_SECONDS) == [learns]
        assert turned(worker, 0.2 * KEEP_SECONDS) == [learns, answers]
        send(worker.keepers[answers].streams, "resume", {}, "ann")
        assert turned(worker, 0.1 * KEEP_SECONDS) == [learns]  # it is not known yet
        turned(worker, COMMANDS_SECONDS)
        worker.learning._commands_at = 0.0
        assert turned(worker, 0.1 * KEEP_SECONDS) == [learns, answers]


def test_the_commands_of_a_line_that_was_just_opened_again_are_asked_for_at_once(settings: Any, line: str) -> None:
    with keeping(settings(line)) as worker:
        keeper, learning = worker.keepers[line], worker.learning
        learning._commands_at = math.inf
        assert learning._commands(worker.client, [keeper]) == {}
        sent = send(keeper.streams, "pause", {}, "ann")
        keeper.lose("it failed")
        keeper._acquire_at = 0.0
        keeper.acquire(worker.holder)
        came = learning._commands(worker.client, [keeper])[line]
        learning._commands_at = math.inf
        assert learning._commands(worker.client, [keeper]) == {}
    assert isinstance(came, list)
    assert [command.entry for command in came] == [sent]


def test_a_line_whose_commands_are_refused_has_its_lease_renewed_all_the_same(settings: Any, line: str) -> None:
    with keeping(settings(line)) as worker:
        keeper = worker.keepers[line]
        keeper.lease._renew_at = 0.0
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            worker.learning._keep(keeper, redis.ResponseError("WRONGTYPE"))
        assert keeper.lease._renew_at > 0.0


def test_what_is_noted_of_a_line_goes_with_it(settings: Any, line: str) -> None:
    with keeping(settings(f"{line}-a", f"{line}-b")) as worker:
        assert set(worker.learning._keep_at) == {f"{line}-a", f"{line}-b"}
        worker.reread = lambda: settings(f"{line}-a")
        worker._reload()
        assert set(worker.learning._keep_at) == {f"{line}-a"}
