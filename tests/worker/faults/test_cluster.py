"""A worker whose lines are on three nodes of a Cluster."""

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.worker.faults.processes import COUNTS, committed, done, play, results, running_worker, state, write_config
from tests.worker.faults.servers import PrivateCluster, private_cluster
from tests.worker.helpers import eventually
from worker.settings import RedisSettings
from worker.snapshots import Snapshot
from worker.streams.client import CONNECTION_ERRORS, connect

IMAGES = 100
POISONED = {10, 30, 55, 90}


def started(cluster: PrivateCluster, line: str, folder: Path) -> tuple[Any, list[str], Path]:
    """A client, names of lines on each of the nodes, and the configuration of a worker that has them all."""
    client: Any = connect(RedisSettings.model_validate({"url": cluster.url}))
    lines = cluster.lines(line)
    config = write_config(folder, cluster.url, lines[0], folder)
    with config.open("a") as file:
        for name in lines[1:]:
            file.write(f'[[lines]]\nname = "{name}"\n')
    return client, lines, config


def persistently(what: Any) -> Any:
    """What it gives once the Cluster serves."""

    def attempt() -> list[Any]:
        try:
            return [what()]
        except CONNECTION_ERRORS:
            return []

    return eventually(attempt)[0]


def finish(client: Any, lines: list[str], worker: Any) -> None:
    eventually(
        lambda: all(done(client, name, IMAGES) and state(client, name).get("phase") == "scoring" for name in lines)
    )
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0


def assert_each_counted_once(client: Any, lines: list[str], folder: Path, expected: Snapshot) -> None:
    for name in lines:
        times = Counter(result["id"] for result in results(client, name))
        assert times == {str(i): 1 for i in range(IMAGES) if i not in POISONED}
        letters = Counter(fields[b"id"].decode() for _, fields in client.xrange(f"mhpc:{{{name}}}:dead"))
        assert letters == {str(i): 1 for i in POISONED}
        found = committed(client, name, folder)
        assert {key: found.metadata[key] for key in COUNTS} == {key: expected.metadata[key] for key in COUNTS}


def test_a_worker_answers_and_learns_lines_on_three_nodes_one_of_which_moves(
    line: str, tmp_path: Path, unbroken_run: Snapshot
) -> None:
    with private_cluster(tmp_path / "nodes") as cluster:
        client, lines, config = started(cluster, line, tmp_path)
        images = f"mhpc:{{{lines[0]}}}:images"
        for name in lines:
            play(client, name, 0, 20)
        with running_worker(config) as worker:
            eventually(lambda: all(done(client, name, 20) for name in lines))
            to = cluster.join()
            cluster.wait()
            cluster.begin_to_move(images, to)
            for name in lines:
                play(client, name, 20, 60)
            while cluster.move_keys(images, to, 1):
                pass
            cluster.end_to_move(images, to)
            eventually(lambda: all(done(client, name, 60) for name in lines))
            for name in lines:
                play(client, name, 60, IMAGES)
            finish(client, lines, worker)
        assert cluster.holder(images) is to
        assert_each_counted_once(client, lines, tmp_path, unbroken_run)


@pytest.mark.parametrize("phase", [20, 60, 88], ids=["learning", "calibrating", "scoring"])
def test_a_node_that_is_killed_and_comes_back_has_lost_nothing(
    line: str, tmp_path: Path, phase: int, unbroken_run: Snapshot
) -> None:
    with private_cluster(tmp_path / "nodes") as cluster:
        client, lines, config = started(cluster, line, tmp_path)
        node = cluster.holder(f"mhpc:{{{lines[1]}}}:images")
        with running_worker(config) as worker:
            for name in lines:
                play(client, name, 0, phase)
            eventually(lambda: all(done(client, name, 4) for name in lines))
            node.restart()
            persistently(lambda: client.xlen(f"mhpc:{{{lines[1]}}}:images"))
            cluster.wait()
            for name in lines:
                play(client, name, phase, IMAGES)
            finish(client, lines, worker)
        assert_each_counted_once(client, lines, tmp_path, unbroken_run)
