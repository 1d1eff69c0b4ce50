"""kill -9 at any moment loses nothing and counts nothing twice."""

import signal
from pathlib import Path

import pytest
import redis

from tests.worker.faults.processes import (
    CALIBRATE,
    IMAGES,
    LEARN,
    PHASES,
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
from tests.worker.helpers import eventually
from worker.snapshots import Snapshot


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ended_in_every_phase_leaves_the_counts_of_an_unbroken_run(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path, unbroken_run: Snapshot, number: signal.Signals
) -> None:
    config = write_config(tmp_path, redis_url, line, tmp_path)
    sent = 0
    for upto in PHASES:
        play(client, line, sent, upto)
        sent = upto
        with running_worker(config) as worker:
            eventually(lambda upto=upto: done(client, line, upto - 4))  # type: ignore[misc]  # mypy cannot infer a default
            worker.send_signal(number)
            assert worker.wait(30) == (0 if number == signal.SIGTERM else -number)
    play(client, line, sent, IMAGES)
    with running_worker(config) as worker:
        finish(client, line, worker)
    found = committed(client, line, tmp_path)
    assert_learned_alike(found, unbroken_run)
    assert found.metadata["images_learned"] + found.metadata["images_quarantined"] >= LEARN
    assert found.metadata["images_calibrated"] >= CALIBRATE
    assert found.metadata["precision"] == "float32"  # as configured; a next start keeps to it
    assert_each_answered_once(client, line)


def test_what_was_learned_since_the_last_snapshot_survives_sigterm(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, redis_url, line, tmp_path, learn=1000)
    play(client, line, 0, 4)  # fewer than every_images
    with running_worker(config) as worker:
        eventually(lambda: done(client, line, 4))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert committed(client, line, tmp_path).metadata["images_learned"] == 4
    assert client.xpending(f"mhpc:{{{line}}}:images", "mhpc-learn")["pending"] == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_snapshot_lets_the_one_before_it_serve(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path, damage: str
) -> None:
    config = write_config(tmp_path, redis_url, line, tmp_path)
    play(client, line, 0, 80)
    with running_worker(config) as worker:
        eventually(lambda: state(client, line).get("phase") == "scoring")
        worker.kill()
    newest = tmp_path / line / f"{state(client, line)['model']}.safetensors"
    content = newest.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    newest.write_bytes(content[:middle] if damage == "truncated" else flipped)
    with running_worker(config) as worker:
        play(client, line, 80, 84)
        eventually(lambda: done(client, line, 84))
        assert worker.poll() is None
        assert newest.with_suffix(".bad").exists()
        assert results(client, line)[-1]["score"] is not None
