"""Whatever becomes of a server, or of a worker, each image is answered once and learned from once."""

import os
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.faults.processes import (
    CALIBRATE,
    IMAGES,
    PHASES,
    assert_each_answered_once,
    assert_learned_alike,
    broken_in_every_phase,
    committed,
    done,
    finish,
    patient,
    play,
    results,
    running_worker,
    state,
    write_config,
)
from tests.worker.faults.servers import DurableRedis
from tests.worker.helpers import eventually
from worker.snapshots import Snapshot, epoch_of


def test_a_server_killed_in_every_phase_that_kept_what_it_confirmed_loses_no_image_and_counts_none_twice(
    durable_redis: DurableRedis, line: str, tmp_path: Path, unbroken_run: Snapshot
) -> None:
    client = patient(durable_redis.url)

    def kill(_: int) -> None:
        durable_redis.kill()
        durable_redis.start()

    with running_worker(write_config(tmp_path, durable_redis.url, line, tmp_path)) as worker:
        broken_in_every_phase(client, line, kill)
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    assert_learned_alike(committed(client, line, tmp_path), unbroken_run)


@pytest.mark.parametrize("how", ["flushed", "killed"])
def test_a_wiped_server_gets_its_groups_again_and_the_model_answers_on_under_a_higher_epoch(
    private_redis: PrivateRedis, line: str, tmp_path: Path, how: str
) -> None:
    client = patient(private_redis.url)
    with running_worker(write_config(tmp_path, private_redis.url, line, tmp_path)) as worker:
        play(client, line, 0, 80)
        eventually(lambda: done(client, line, 80) and state(client, line).get("phase") == "scoring")
        before, learned = int(state(client, line)["epoch"]), committed(client, line, tmp_path)
        if how == "flushed":
            client.flushall()
        else:
            private_redis.kill()
            private_redis.start()
        play(client, line, 80, IMAGES)
        finish(client, line, worker, IMAGES - 80)
    assert_each_answered_once(client, line, 80)
    assert all(result["score"] is not None for result in results(client, line))
    assert int(state(client, line)["epoch"]) > before
    assert committed(client, line, tmp_path).stem >= learned.stem
    assert_learned_alike(committed(client, line, tmp_path), learned)
    assert {group["name"] for group in client.xinfo_groups(f"mhpc:{{{line}}}:images")} == {b"mhpc", b"mhpc-learn"}


def test_a_server_that_is_full_takes_no_picture_and_a_worker_makes_room_in_every_phase(
    private_redis: PrivateRedis, line: str, tmp_path: Path, unbroken_run: Snapshot
) -> None:
    client, config = patient(private_redis.url), write_config(tmp_path, private_redis.url, line, tmp_path)
    images = f"mhpc:{{{line}}}:images"
    for first, upto in pairwise((0, *PHASES)):
        play(client, line, first, upto)
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.xadd(images, {"batch": b"x"})
        with running_worker(config) as worker:  # no lease, no consumer and no group stand ready
            eventually(partial(done, client, line, upto))
            if upto < PHASES[-1]:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
            else:
                eventually(lambda: client.xlen(images) == 0)
                client.config_set("maxmemory", 0)
                play(client, line, PHASES[-1], IMAGES)
                finish(client, line, worker)
        client.config_set("maxmemory", 0)
    assert_each_answered_once(client, line)
    assert_learned_alike(committed(client, line, tmp_path), unbroken_run)


def test_a_worker_stopped_past_its_lease_commits_nothing_more_and_each_image_is_answered_once(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path, unbroken_run: Snapshot
) -> None:
    def epoch() -> int:
        return int(state(client, line).get("epoch", 0))

    first, second = (write_config(tmp_path, redis_url, line, tmp_path, name=f"{line}-{n}") for n in (1, 2))
    with running_worker(first) as stopped:
        play(client, line, 0, 40)
        eventually(lambda: done(client, line, 8))
        stopped.send_signal(signal.SIGSTOP)
        eventually(lambda: is_stopped(stopped.pid))
        client.delete(f"mhpc:{{{line}}}:lease")  # as if it had run out
        before = epoch()
        with running_worker(second) as keeper:
            eventually(lambda: epoch() > before)
            after = epoch()
            play(client, line, 40, 60)
            eventually(lambda: done(client, line, 20))
            stopped.send_signal(signal.SIGCONT)
            eventually(lambda: b"lost to another keeper" in first.with_suffix(".log").read_bytes())
            play(client, line, 60, IMAGES)
            eventually(lambda: done(client, line, IMAGES) and state(client, line).get("phase") == "scoring")
            stopped.send_signal(signal.SIGTERM)
            assert stopped.wait(30) == 0
            finish(client, line, keeper)
    assert epoch() == epoch_of(state(client, line)["model"]) == after
    assert_each_answered_once(client, line)
    assert_learned_alike(committed(client, line, tmp_path), unbroken_run)
    assert unbroken_run.metadata["images_calibrated"] >= CALIBRATE


def is_stopped(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is not None
