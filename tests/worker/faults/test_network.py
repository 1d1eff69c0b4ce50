"""Between a worker and its server anything may be lost: each image is answered once, and learned from once."""

import os
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from tests.conftest import PrivateRedis
from tests.worker.faults.processes import (
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
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import eventually
from tests.worker.playing import answered, send
from tests.worker.turning import running
from worker.snapshots import Snapshot

OUTAGE_SECONDS = float(os.environ.get("FAULTS_OUTAGE_SECONDS", "5"))

# What a reply is lost to, by the arguments that tell it, and whether a line that scores sends it too.
LOSSES = {
    "reading to answer": (b"XREADGROUP", b"mhpc", True),
    "the gate": (b"EVALSHA", b"mhpc:{%s}:scores", True),
    "reading to learn": (b"EVALSHA", b"read", False),
    "the commit": (b"EVALSHA", b"commit", False),
    "acknowledging": (b"EVALSHA", b"ack", False),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_reply_lost_in_every_phase_loses_no_image_and_counts_none_twice(
    proxy: Proxy, client: redis.Redis, line: str, tmp_path: Path, unbroken_run: Snapshot, what: str
) -> None:
    command, argument, while_scoring = LOSSES[what]
    phases = PHASES if while_scoring else PHASES[:-1]
    with running_worker(write_config(tmp_path, proxy.url, line, tmp_path)) as worker:
        play(client, line, 0, 4)
        eventually(lambda: done(client, line, 4))  # past the commit that a start makes
        for losses, (first, upto) in enumerate(pairwise((4, *phases)), 1):
            proxy.drop_reply(command, argument.replace(b"%s", line.encode()))
            play(client, line, first, upto)
            eventually(partial(lost, proxy, losses))
            eventually(partial(done, client, line, upto))
        play(client, line, phases[-1], IMAGES)
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    assert_learned_alike(committed(client, line, tmp_path), unbroken_run)


def lost(proxy: Proxy, replies: int) -> bool:
    return proxy.dropped == replies


def test_a_network_that_is_gone_for_a_while_in_every_phase_loses_no_image_and_counts_none_twice(
    proxy: Proxy, client: redis.Redis, line: str, tmp_path: Path, unbroken_run: Snapshot
) -> None:
    def cut(upto: int) -> None:
        refused = proxy.refused
        proxy.cut()
        if upto == PHASES[1]:
            time.sleep(OUTAGE_SECONDS)  # how long it lasts is what is tried
        eventually(lambda: proxy.refused >= refused + 2)
        proxy.mend()

    with running_worker(write_config(tmp_path, proxy.url, line, tmp_path)) as worker:
        broken_in_every_phase(client, line, cut)
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    assert_learned_alike(committed(client, line, tmp_path), unbroken_run)


def test_a_server_that_takes_commands_and_answers_nothing_is_left_and_no_image_is_lost(
    proxy: Proxy, client: redis.Redis, line: str, tmp_path: Path, unbroken_run: Snapshot
) -> None:
    def silence(_: int) -> None:
        accepted = proxy.accepted
        proxy.half_open()
        eventually(lambda: proxy.accepted > accepted)
        proxy.mend()

    config = write_config(tmp_path, f"{proxy.url}?socket_timeout=1.5", line, tmp_path)
    with running_worker(config) as worker:
        broken_in_every_phase(client, line, silence)
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    assert_learned_alike(committed(client, line, tmp_path), unbroken_run)


def test_connections_that_end_while_they_are_idle_cost_a_look_each_and_no_image(
    private_redis: PrivateRedis, line: str, settings: Any, tmp_path: Path
) -> None:
    """As a firewall ends them, or Redis by its `timeout`, again and again."""
    client: Any = patient(private_redis.url)
    here, ended, images = client.client_id(), 0, 0
    changes = {"url": private_redis.url, "learning": {"images": 1000}, "snapshots": {"directory": tmp_path}}
    with capture_logs() as logs, running(settings(line, **changes)) as worker:
        for _ in range(6):
            send(client, line, images + 1, images + 8)
            images += 8
            answered(client, line, images)
            idle = [each["id"] for each in client.client_list() if int(each["id"]) != here and "b" not in each["flags"]]
            ended += sum(client.client_kill_filter(_id=each) for each in idle)
        eventually(lambda: int(state(client, line)["progress"].partition("/")[0]) == images)
    assert ended
    assert Counter(each["id"] for each in results(client, line)) == {str(i + 1): 1 for i in range(images)}
    events = [entry["event"] for entry in logs]
    looked = [event for event in events if "looking whether the server is the same" in event]
    assert len(looked) + events.count("Redis is reached again") <= ended
    assert not worker.redialled.is_set()
