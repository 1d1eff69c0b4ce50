"""kill -9 at any moment loses nothing and counts nothing twice."""

import signal
from collections import Counter
from pathlib import Path

import pytest
import redis
import torch

from tests.worker.faults.processes import CALIBRATE, LEARN, committed, results, running_worker, state, write_config
from tests.worker.helpers import eventually, item, message

IMAGES, BATCH = 100, 4
POISONED = {10, 30, 55, 90}  # in each phase
COUNTS = ("images_learned", "images_quarantined", "images_calibrated", "rows", "phase", "line")


def play(client: redis.Redis, line: str, start: int, stop: int) -> None:
    for first in range(start, stop, BATCH):
        items = [
            item(str(i), **({"data": b"\x89PNG cut"} if i in POISONED else {})) for i in range(first, first + BATCH)
        ]
        client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(*items)})


def done(client: redis.Redis, line: str, count: int) -> bool:
    answered = int(client.xlen(f"mhpc:{{{line}}}:scores")) + int(client.xlen(f"mhpc:{{{line}}}:dead"))
    return answered >= count


def test_a_worker_killed_in_every_phase_ends_with_the_counts_of_an_unbroken_run(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path
) -> None:
    unbroken, broken = f"{line}-u", f"{line}-b"
    config = write_config(tmp_path, redis_url, unbroken, tmp_path)
    play(client, unbroken, 0, IMAGES)
    with running_worker(config) as worker:
        eventually(lambda: done(client, unbroken, IMAGES) and state(client, unbroken).get("phase") == "scoring")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0

    config = write_config(tmp_path, redis_url, broken, tmp_path)
    sent = 0
    for upto in (20, 60, 88):  # while it learns, calibrates, scores
        play(client, broken, sent, upto)
        sent = upto
        with running_worker(config) as worker:
            eventually(lambda upto=upto: done(client, broken, upto - 4))  # type: ignore[misc]  # mypy cannot infer a default
            worker.kill()
    play(client, broken, sent, IMAGES)
    with running_worker(config) as worker:
        eventually(lambda: done(client, broken, IMAGES) and state(client, broken).get("phase") == "scoring")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0

    expected, found = (committed(client, name, tmp_path) for name in (unbroken, broken))
    same = {key: found.metadata[key] for key in COUNTS if key != "line"}
    assert same == {key: expected.metadata[key] for key in COUNTS if key != "line"}
    assert found.metadata["images_learned"] + found.metadata["images_quarantined"] >= LEARN
    assert found.metadata["images_calibrated"] >= CALIBRATE
    assert int(found.tensors["mass"].sum()) == found.metadata["rows"]
    torch.testing.assert_close(found.tensors["mean"], expected.tensors["mean"], rtol=1e-5, atol=1e-5)
    for name in (unbroken, broken):
        times = Counter(result["id"] for result in results(client, name))
        assert times == {str(i): 1 for i in range(IMAGES) if i not in POISONED}
        assert client.xlen(f"mhpc:{{{name}}}:dead") == len(POISONED)


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
