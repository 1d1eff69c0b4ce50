"""kill -9 around a command: it is carried out once and answered once."""

import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.worker.faults.processes import CALIBRATE, LEARN, results, running_worker, state, write_config
from tests.worker.helpers import eventually, item, message
from tests.worker.station import stained
from worker.streams.control import send, wait_for_reply
from worker.streams.line_streams import LineStreams

WAITS = (0.3, 1.1)  # seconds from a command to the kill: around the look that obeys it


def play(client: redis.Redis, line: str, first: int, last: int, **changes: Any) -> None:
    for start in range(first, last + 1, 4):
        items = [item(str(number), **changes) for number in range(start, min(start + 4, last + 1))]
        client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(*items)})


def shown(client: redis.Redis, line: str, name: str) -> dict[str, Any]:
    """The result of the strange picture, sent once more by this name."""
    client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(item(name, data=stained(7)))})
    (found,) = eventually(lambda: [result for result in results(client, line) if result["id"] == name])
    return dict(found)


def told_and_killed(streams: LineStreams, config: Path, name: str, args: dict[str, Any], wait: float) -> None:
    """Send a command to a worker that is killed then, start another, and kill it when it has answered."""
    before = streams.client.xlen(streams.replies)
    with running_worker(config) as worker:
        eventually(lambda: streams.client.exists(streams.lease))
        eventually(lambda: state(streams.client, streams.line).get("phase"))
        command = send(streams, name, args, "ann")
        time.sleep(wait)
        worker.kill()
    with running_worker(config):
        reply = wait_for_reply(streams, command, 60)
    assert reply is not None
    assert reply.ok, reply.text
    assert streams.client.xlen(streams.replies) == before + 1


@pytest.mark.parametrize("wait", WAITS)
def test_normal_relearn_and_rollback_are_carried_out_and_answered_once(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path, wait: float
) -> None:
    config = write_config(tmp_path, redis_url, line, tmp_path)
    streams = LineStreams(client, line)
    total = LEARN + CALIBRATE + 8
    play(client, line, 1, total)
    with running_worker(config):
        eventually(lambda: state(client, line).get("phase") == "scoring")
        eventually(lambda: len(results(client, line)) == total)
        strange = shown(client, line, "strange")
        assert strange["anomalous"]

    told_and_killed(streams, config, "normal", {"entry": strange["entry"], "id": "strange"}, wait)
    pinned = state(client, line)["model"]
    with running_worker(config):
        assert shown(client, line, "known")["anomalous"] is False

    told_and_killed(streams, config, "relearn", {}, wait)
    assert state(client, line)["phase"] == "learning"
    with running_worker(config):
        assert shown(client, line, "while it relearns")["anomalous"] is False

    told_and_killed(streams, config, "rollback", {"version": pinned}, wait)
    assert state(client, line)["phase"] == "scoring"
    with running_worker(config):
        again = shown(client, line, "rolled back")
        assert again["anomalous"] is False
        assert again["model"] > pinned
    assert streams.client.xlen(streams.replies) == 3
    assert len(results(client, line)) == total + 4
