"""kill -9 at every failpoint in every phase, on the same line; and images that take the process down."""

import signal
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.worker.faults.failing import VARIABLE, killed_at, supervised
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
from worker.failpoints import NAMES
from worker.snapshots import Snapshot
from worker.streams.control import send
from worker.streams.line_streams import LineStreams

ANSWERING = NAMES[: NAMES.index("learn_read")]
LEARNING = NAMES[NAMES.index("learn_read") : NAMES.index("acknowledge")]
SAVING = LEARNING[LEARNING.index("temporary") :]  # what a command's version passes, too


def settled(client: redis.Redis, line: str, config: Path, images: int, phase: str) -> None:
    """Let a worker answer so many images and come to that phase, and kill it."""
    with running_worker(config):
        eventually(lambda: done(client, line, images) and state(client, line).get("phase") == phase)


@pytest.mark.timeout(900)  # 37 starts
def test_killed_at_every_failpoint_in_every_phase_it_ends_as_an_unbroken_run_does(
    redis_url: str,
    client: redis.Redis,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken_run: Snapshot,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # who has threads cannot be forked
    config = write_config(tmp_path, redis_url, line, tmp_path)
    for phase, first, last, after in (("learning", 0, 56, "calibrating"), ("calibrating", 56, 84, "scoring")):
        play(client, line, first, first + 8)
        for name in (*ANSWERING, *LEARNING):
            killed_at(config, name)
        play(client, line, first + 8, first + 16)
        killed_at(config, "acknowledge")
        assert state(client, line)["phase"] == phase
        play(client, line, first + 16, last)
        settled(client, line, config, last, after)
    play(client, line, 84, 92)
    for name in ANSWERING:
        killed_at(config, name)
    for names in (SAVING, ["acknowledge"]):
        send(LineStreams(client, line), "rate", {"rate": 0.05}, "ann")
        for name in names:
            killed_at(config, name)
    play(client, line, 92, IMAGES)
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


@pytest.mark.parametrize(("action", "code"), [("hang", 1), ("lost", 5), ("oom", 5)])
def test_an_image_that_hangs_or_trips_the_device_each_time_ends_as_a_dead_letter_under_any_supervisor(
    redis_url: str,
    client: redis.Redis,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    code: int,
) -> None:
    """One that only starts again what has ended, as Docker's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # who has threads cannot be forked
    config = write_config(tmp_path, redis_url, line, tmp_path)
    key = f"mhpc:{{{line}}}:images"
    client.xadd(key, {"batch": message(*(item(str(number)) for number in range(4)))})
    client.xadd(key, {"batch": message(item("4"), item("poison"), item("5"))})
    client.xadd(key, {"batch": message(*(item(str(number)) for number in range(6, 12)))})
    stalled = 4.0 if action == "hang" else 120.0
    codes = supervised(config, f"decode=poison:{action}:1+", stalled, lambda: done(client, line, 13))
    assert len(codes) >= 3  # three times by itself; before, among others, but for a batch that memory lacks for
    assert set(codes) == {code}
    assert sorted(int(result["id"]) for result in results(client, line)) == list(range(12))
    letters: Any = client.xrange(f"mhpc:{{{line}}}:dead")
    ((_, letter),) = letters
    assert (letter[b"id"], letter[b"reason"]) == (b"poison", b"failed")
