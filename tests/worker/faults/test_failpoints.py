"""kill -9 at every failpoint, one after the other on the same line; and images that take the process down."""

import signal
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.worker.faults.processes import (
    IMAGES,
    assert_each_answered_once,
    assert_learned_alike,
    committed,
    done,
    finish,
    play,
    results,
    running_worker,
    state,
    write_config,
)
from tests.worker.helpers import eventually, item, message
from worker.failpoints import NAMES, VARIABLE
from worker.snapshots import Snapshot

IN_LEARNING = [name for name in NAMES if name not in {"gate_done", "forward"}]
IN_SCORING = ["read", "decode", "forward", "gate", "gate_done"]


def killed_at(config: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    monkeypatch.setenv(VARIABLE, f"{name}:kill:{count}")
    with running_worker(config) as worker:
        assert worker.wait(60) == -signal.SIGKILL, f"{name} is not passed"
    monkeypatch.delenv(VARIABLE)


def test_killed_at_every_failpoint_it_ends_as_an_unbroken_run_does(
    redis_url: str,
    client: redis.Redis,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken_run: Snapshot,
) -> None:
    config = write_config(tmp_path, redis_url, line, tmp_path)
    play(client, line, 0, 88)
    for number, name in enumerate(IN_LEARNING):
        killed_at(config, monkeypatch, name, 1 + number % 2)
    with running_worker(config) as worker:
        eventually(lambda: done(client, line, 88) and state(client, line).get("phase") == "scoring")
        worker.kill()
    for number, name in enumerate(IN_SCORING):
        play(client, line, 88 + 2 * number, 90 + 2 * number)
        killed_at(config, monkeypatch, name, 1)
    play(client, line, 98, IMAGES)
    with running_worker(config) as worker:
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    assert_learned_alike(committed(client, line, tmp_path), unbroken_run)


def test_an_image_that_crashes_the_process_ends_as_a_dead_letter_and_the_line_goes_on(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, redis_url, line, tmp_path)
    key = f"mhpc:{{{line}}}:images"
    client.xadd(key, {"batch": message(*(item(str(number)) for number in range(4)))})
    client.xadd(key, {"batch": message(item("4"), item("poison"), item("5"))})
    client.xadd(key, {"batch": message(*(item(str(number)) for number in range(6, 12)))})
    monkeypatch.setenv(VARIABLE, "decode=poison:crash:1+")
    crashes = 0
    while not done(client, line, 13):  # as a supervisor starts it again
        with running_worker(config) as worker:
            eventually(lambda w=worker: w.poll() is not None or done(client, line, 13))  # type: ignore[misc]  # binds the loop's
            crashes += worker.poll() == -signal.SIGSEGV
            assert worker.poll() in (None, -signal.SIGSEGV)
    assert crashes == 4  # once among others, three times by itself
    assert sorted(int(result["id"]) for result in results(client, line)) == list(range(12))
    letters: Any = client.xrange(f"mhpc:{{{line}}}:dead")
    ((_, letter),) = letters
    assert (letter[b"id"], letter[b"reason"]) == (b"poison", b"failed")
