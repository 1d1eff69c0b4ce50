"""Ranks as processes, started by torchrun: one is killed, and two groups believe that they keep one line."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from torch import Tensor

from mhpc.linalg import nearest
from tests.worker.faults.processes import (
    POISONED,
    assert_each_answered_once,
    committed,
    done,
    play,
    results,
    state,
    write_config,
)
from tests.worker.helpers import eventually, picture
from worker.configuration import load_settings
from worker.engine import Engine, pick_device
from worker.line import Line
from worker.metrics import Metrics
from worker.settings import line_configs
from worker.snapshots import Snapshot, SnapshotStore

LEARN, IMAGES = 160, 200
LET_GO = "if string.match(redis.call('GET', KEYS[1]) or '', '^(.*)#') == ARGV[1] then redis.call('DEL', KEYS[1]) end"


@contextmanager
def ranks(config: Path, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """A group that torchrun watches over; all of it is killed at the end."""
    log = config.with_suffix(".log").open("ab")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
    command += ["--nproc-per-node", str(count), "-m", "worker", "run", "--distributed", "--config", str(config)]
    group = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield group
    finally:
        for pid in processes(group).values():
            os.kill(pid, signal.SIGKILL)
        group.kill()
        group.wait()
        log.close()


def processes(group: subprocess.Popen[bytes]) -> dict[int, int]:
    """Rank -> pid, of those that torchrun has started."""
    found: dict[int, int] = {}
    if group.poll() is not None:
        return found
    for pid in Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = next((v.partition(b"=")[2] for v in variables if v.startswith(b"RANK=")), None)
        if rank is not None:
            found[int(rank)] = int(pid)
    return found


def learned_alone(config: Path, numbers: range) -> tuple[Line, Tensor]:
    """One process's line, and the patches [B, P, D] that it has learned."""
    settings = load_settings(config, {})
    engine = Engine(settings.model, pick_device("cpu"), Metrics())
    line = Line(line_configs(settings)[0], settings.model.pca_variance_ratio, engine.device)
    good = [n for n in numbers if n not in POISONED]
    features = torch.cat(list(engine.batches(engine.prepare(picture(n)) for n in good)))
    line.learner.partial_fit(features)
    return line, features


def assert_learned_as_alone(found: Snapshot, config: Path) -> None:
    alone, features = learned_alone(config, range(LEARN))
    moments, tensors = alone.learner.pca_.moments_, found.tensors
    assert found.metadata["rows"] == moments.n == int(tensors["mass"].sum())
    assert (tensors["scatter"] - moments.scatter).norm() / moments.scatter.norm() < 1e-5
    scorer = alone.learner.scorer()
    z = scorer.whiten(features).flatten(0, 1)
    radii = [nearest(z, scorer.whiten(bank[None])[0])[0].max() for bank in (tensors["anchors"], bank_of(alone))]
    print(f"covering radius: ranks {radii[0]:.3f}, one process {radii[1]:.3f}")  # noqa: T201 - a figure, for -s
    assert radii[0] <= 1.05 * radii[1]


def bank_of(line: Line) -> Tensor:
    assert line.learner.bank_ is not None
    line.learner.freeze()
    return line.learner.bank_.anchors


def hot_config(folder: Path, url: str, line: str, name: str) -> Path:
    """Learning without a guard that could set parts aside here and not there."""
    config = write_config(folder, url, line, folder / "snapshots", name, learn=LEARN - len(POISONED), every_images=24)
    more = "images = 156\nconverge = false\nmoments_share = 1.0"
    config.write_text(config.read_text().replace("images = 156", more))
    return config


@pytest.mark.timeout(600)
def test_a_killed_rank_costs_nothing_and_counts_nothing_twice(
    client: redis.Redis, redis_url: str, line: str, tmp_path: Path
) -> None:
    config = hot_config(tmp_path, redis_url, line, "hot")
    with ranks(config, 4) as group:
        play(client, line, 0, 100)
        eventually(lambda: SnapshotStore(tmp_path / "snapshots", line).stems(), 180)  # four import torch first
        os.kill(processes(group)[2], signal.SIGKILL)
        play(client, line, 100, IMAGES)
        eventually(lambda: done(client, line, IMAGES) and state(client, line).get("phase") == "scoring", 180)
        assert int(state(client, line)["epoch"]) > 1  # all began again
        pids = processes(group)
        group.send_signal(signal.SIGTERM)
        group.wait(60)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert_each_answered_once(client, line, 0, IMAGES)
    found = committed(client, line, tmp_path / "snapshots")
    assert found.metadata["images_learned"] + found.metadata["images_quarantined"] == LEARN - len(POISONED)
    assert_learned_as_alone(found, config)


def holder(client: redis.Redis, line: str) -> str:
    """The worker that has the line's lease."""
    found: Any = client.get(f"mhpc:{{{line}}}:lease")
    return (found or b"").decode().partition("#")[0]


@pytest.mark.timeout(600)
def test_of_two_groups_on_one_line_the_one_that_lost_the_lease_commits_nothing(
    client: redis.Redis, redis_url: str, line: str, tmp_path: Path
) -> None:
    """A split network leaves the first without its lease: the second takes over, and the first finds out."""
    with (
        ranks(hot_config(tmp_path, redis_url, line, "left"), 2),
        ranks(right := hot_config(tmp_path, redis_url, line, "right"), 2),
    ):
        play(client, line, 0, 60)
        eventually(lambda: done(client, line, 60) and SnapshotStore(tmp_path / "snapshots", line).stems(), 120)
        first = eventually(lambda: holder(client, line))

        def taken_over() -> bool:
            client.eval(LET_GO, 1, f"mhpc:{{{line}}}:lease", first)  # who renews one that is gone makes it anew
            return {first, holder(client, line)} == {"left", "right"}

        eventually(taken_over, 120)
        play(client, line, 60, IMAGES)
        eventually(lambda: done(client, line, IMAGES) and state(client, line).get("phase") == "scoring", 180)
    assert_each_answered_once(client, line, 0, IMAGES)
    times = Counter(result["id"] for result in results(client, line))
    assert set(times.values()) == {1}
    found = committed(client, line, tmp_path / "snapshots")
    assert int(found.stem.partition("-")[0]) == int(state(client, line)["epoch"]) == 2
    assert_learned_as_alone(found, right)
