"""Lines that are declared in Redis, and workers that share out who keeps them."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.faults.servers import private_cluster
from tests.worker.helpers import eventually
from tests.worker.playing import answered, in_phase, send
from tests.worker.turning import Run, get, running
from worker.daemon import Worker
from worker.errors import ConfigurationError
from worker.fleet import Fleet
from worker.line import SCORING
from worker.metrics import Metrics
from worker.settings import LINES_KEY, WORKERS_KEY, RedisSettings, Settings
from worker.streams.client import connect
from worker.streams.line_streams import LineStreams


@pytest.fixture(autouse=True)
def _sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fleet.LOOK_SECONDS", "keeping.keeper.ACQUIRE_SECONDS"):
        monkeypatch.setattr(f"worker.{name}", 0.2)


@pytest.fixture
def server(private_redis: PrivateRedis) -> Any:
    """A server whose `mhpc:lines` is this test's alone."""
    return redis.Redis(port=private_redis.port, protocol=2)


Member = Callable[..., Settings]


@pytest.fixture
def member(private_redis: PrivateRedis, settings: Any) -> Member:
    """Settings of a worker of the fleet."""

    def member(name: str = "w-1", *own: str, capacity: int = 1_000_000, **sections: Any) -> Settings:
        about = {"name": name, "fleet": True, "capacity": capacity}
        found: Settings = settings(*own, url=private_redis.url, worker=about, **sections)
        return found

    return member


def declare(server: Any, *names: str, **told: Any) -> None:
    for name in names:
        server.hset(LINES_KEY, name, json.dumps(told))


def kept(worker: Worker) -> set[str]:
    return {name for name, keeper in dict(worker.keepers).items() if keeper.epoch}


def keeper_of(server: Any, name: str) -> str:
    holder: bytes | None = server.get(LineStreams(server, name).lease)
    return holder.decode().partition("#")[0] if holder else ""


def test_without_fleet_nothing_that_is_declared_is_served(run: Run, settings: Any, server: Any, member: Member) -> None:
    declare(server, "press-1")
    worker = run(settings("own", url=member().redis.url.get_secret_value()))
    eventually(lambda: kept(worker) == {"own"})
    assert server.exists(WORKERS_KEY) == 0
    assert get(worker, "/readyz") == (200, "ok\n")


def test_a_worker_without_lines_of_its_own_serves_those_that_are_declared_as_they_come_and_go(
    run: Run, server: Any, member: Member
) -> None:
    worker = run(member())
    assert eventually(lambda: get(worker, "/readyz") == (200, "ok\n"))
    declare(server, "press-1", learning={"images": 12})
    send(server, "press-1", 1, 36)
    answered(server, "press-1", 36)
    eventually(lambda: in_phase(server, "press-1", SCORING))
    assert worker.keepers["press-1"].line.learner.images_seen_ == 12
    assert (worker.fleet.metrics.fleet_workers._value.get(), worker.fleet.share) == (1, 1)
    declare(server, "press-1", learning={"images": 12}, scoring={"heat_map": False})

    def changed() -> bool:
        config = worker.lines.configs.get("press-1")  # gone for a moment, while it is opened anew
        return config is not None and not config.scoring.heat_map and kept(worker) == {"press-1"}

    eventually(changed)
    assert worker.keepers["press-1"].line.phase == SCORING  # it goes on from what it learned
    server.hdel(LINES_KEY, "press-1")
    eventually(lambda: not worker.keepers)
    assert keeper_of(server, "press-1") == ""


def test_keepers_are_spread_evenly_and_move_when_workers_come_and_go(run: Run, server: Any, member: Member) -> None:
    names = [f"press-{number}" for number in range(5)]
    declare(server, *names)
    first = run(member("w-1"))
    eventually(lambda: kept(first) == set(names))
    for name in names:
        send(server, name, 1, 8)
    with running(member("w-2")) as second:
        eventually(lambda: (len(kept(first)), len(kept(second))) == (2, 3))  # their shares; 3 and 2 are on the way
        assert kept(first) | kept(second) == set(names)
        assert {name for name in names if keeper_of(server, name) == "w-2"} == kept(second)
        for name in names:
            answered(server, name, 8)
        for worker in (first, second):  # a line that the other keeps is none of its problems
            assert eventually(lambda worker=worker: get(worker, "/readyz")[0] == 200)  # type: ignore[misc]  # mypy sees no default's type
        for name in names:
            send(server, name, 9, 36)
        for name in names:
            assert sorted(int(result["id"]) for result in answered(server, name, 36)) == list(range(1, 37))
    eventually(lambda: kept(first) == set(names))  # it left: nobody waits for its leases
    assert server.hkeys(WORKERS_KEY) == [b"w-1"]
    for name in names:
        eventually(partial(in_phase, server, name, SCORING))
        assert first.keepers[name].line.learner.images_seen_ == 16


def test_a_worker_keeps_no_more_than_its_capacity_and_says_that_nobody_keeps_the_rest(
    run: Run, server: Any, member: Member
) -> None:
    declare(server, "press-1", "press-2")
    answers = run(member("w-1", capacity=0))
    send(server, "press-1", 1, 4)
    answered(server, "press-1", 4)
    eventually(lambda: get(answers, "/readyz")[1].count("nobody keeps it: start a worker of the fleet") == 2)
    one = run(member("w-2", capacity=1))
    eventually(lambda: len(kept(one)) == 1 and get(answers, "/readyz")[1].count("nobody keeps it") == 1)
    assert kept(answers) == set()


def test_a_line_that_nobody_keeps_though_another_should_is_taken_after_a_while(
    run: Run, server: Any, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.fleet.ORPHAN_SECONDS", 0.5)
    declare(server, "press-1", "press-2", "press-3")
    soon = server.time()[0] + 15  # it counts for longer than the test takes
    server.hset(WORKERS_KEY, "ghost", json.dumps({"at": soon, "capacity": 5}))  # it keeps none, whatever the reason
    worker = run(member())
    for name in ("press-1", "press-2", "press-3"):
        eventually(lambda name=name: int(LineStreams(server, name).state().get("epoch", 0)) > 0)  # type: ignore[misc]  # mypy sees no default's type
    assert worker.fleet.share < 3


def test_what_is_declared_otherwise_than_the_file_says_or_cannot_be_used_is_told_and_the_others_go_on(
    run: Run, server: Any, member: Member
) -> None:
    declare(server, "own", learning={"images": 99})
    declare(server, "newer", a_key_of_the_next_release=True)
    declare(server, "good")
    worker = run(member("w-1", "own"))
    eventually(lambda: kept(worker) == {"own", "good"})
    assert worker.lines.configs["own"].learning.images == 16
    status, text = get(worker, "/readyz")
    assert status == 503
    assert "line newer: declared in mhpc:lines: a_key_of_the_next_release: unknown key; known here: bank_size" in text
    assert "line own: this worker's own configuration and mhpc:lines differ; its own holds here" in text
    assert "good" not in text
    assert worker.metrics.registry.get_sample_value("mhpc_fleet_problems") == 2
    declare(server, "good", no_key=1)  # what holds already goes on as it was
    eventually(lambda: "line good: " in get(worker, "/readyz")[1])
    send(server, "good", 1, 4)
    answered(server, "good", 4)
    server.delete(LINES_KEY)
    declare(server, "own")
    assert eventually(lambda: get(worker, "/readyz") == (200, "ok\n"))
    eventually(lambda: kept(worker) == {"own"})  # what was wrong is told no more before the line is let go


def test_a_worker_that_cannot_learn_who_else_is_there_keeps_what_it_can(run: Run, server: Any, member: Member) -> None:
    server.set(WORKERS_KEY, "in the way")
    declare(server, "press-1", "press-2")
    worker = run(member())
    eventually(lambda: kept(worker) == {"press-1", "press-2"})
    told = get(worker, "/readyz")[1]
    assert "mhpc:workers: it cannot be used: " in told
    assert "WRONGTYPE" in told


@pytest.mark.parametrize("key", [LINES_KEY, WORKERS_KEY])
def test_a_key_of_another_type_is_told_and_leaves_all_as_it_is(
    run: Run, server: Any, member: Member, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.fleet.ORPHAN_SECONDS", 0.5)
    declare(server, "press-1")
    worker = run(member())
    eventually(lambda: kept(worker) == {"press-1"})
    with server.pipeline(transaction=True) as at_once:  # nobody looks in between
        at_once.rename(key, "aside")
        at_once.set(key, "in the way")
        at_once.execute()
    assert eventually(lambda: f"{key}: " in (text := get(worker, "/readyz")[1]) and "WRONGTYPE" in text)
    send(server, "press-1", 1, 4)
    answered(server, "press-1", 4)
    assert kept(worker) == {"press-1"}
    server.rename("aside", key)
    assert eventually(lambda: get(worker, "/readyz") == (200, "ok\n"))


def test_a_line_whose_version_is_not_at_hand_is_left_alone_and_the_others_go_on(
    run: Run, server: Any, member: Member
) -> None:
    declare(server, "press-1", "press-2")
    server.hset(LineStreams(server, "press-1").state_key, "model", "0000000001-0000000001")
    worker = run(member())
    send(server, "press-2", 1, 4)
    answered(server, "press-2", 4)
    assert "line press-1: its version cannot be loaded: " in eventually(lambda: get(worker, "/readyz")[1])
    send(server, "press-1", 1, 4)
    time.sleep(0.5)
    assert server.xlen(LineStreams(server, "press-1").scores) == 0  # no answer by a model that it does not have
    assert keeper_of(server, "press-1") == ""


def test_a_worker_that_can_load_no_version_leaves_all_lines_to_the_others(
    run: Run, server: Any, member: Member
) -> None:
    names = {"press-1", "press-2"}
    declare(server, *names)
    first = run(member("w-1"))
    for name in names:
        send(server, name, 1, 8)
        eventually(lambda name=name: LineStreams(server, name).state().get("model"))  # type: ignore[misc]  # mypy sees no default's type
    other = run(member("w-2", model={"input_shape": (32, 32)}))
    text = eventually(lambda: text if (text := get(other, "/readyz")[1]).count("another backbone") == 2 else "")
    assert text.count("its version cannot be loaded") == 2
    eventually(lambda: other.fleet.share == 0 and kept(first) == names)
    assert get(first, "/readyz") == (200, "ok\n")


def test_a_redis_that_lost_all_leaves_the_lines_as_they_were_and_is_told(run: Run, server: Any, member: Member) -> None:
    declare(server, "press-1", "press-2")
    worker = run(member())
    eventually(lambda: kept(worker) == {"press-1", "press-2"})
    server.flushall()
    eventually(lambda: "mhpc:lines: it is gone" in get(worker, "/readyz")[1])
    send(server, "press-1", 1, 4)
    answered(server, "press-1", 4)
    declare(server, "press-2")  # what is declared again holds
    eventually(lambda: kept(worker) == {"press-2"})
    assert eventually(lambda: get(worker, "/readyz") == (200, "ok\n"))


def test_who_was_unheard_of_for_a_day_takes_the_removal_of_the_last_line_for_no_wiped_redis(
    server: Any, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.fleet.LOOK_SECONDS", 0.0)
    declare(server, "press-1")
    stopped, other = (Fleet(server, member(name), f"{name}#1", Metrics()) for name in ("w-1", "w-2"))
    stopped.look(())
    about = json.loads(server.hget(WORKERS_KEY, "w-1"))
    server.hset(WORKERS_KEY, "w-1", json.dumps({**about, "at": about["at"] - 24 * 3600}))
    other.look(())
    server.hdel(LINES_KEY, "press-1")
    assert stopped.look(())  # the lines are to change
    assert (stopped.wanted(), stopped.problems) == ([], {})


def test_a_fleet_works_on_a_cluster(run: Run, settings: Any, tmp_path: Path) -> None:
    names = {f"press-{number}" for number in range(6)}  # on all of its nodes
    with private_cluster(tmp_path / "nodes") as cluster:
        client: Any = connect(RedisSettings.model_validate({"url": cluster.url}))
        declare(client, *names)
        with (
            running(settings(url=cluster.url, worker={"name": "w-1", "fleet": True})) as first,
            running(settings(url=cluster.url, worker={"name": "w-2", "fleet": True})) as second,
        ):
            eventually(lambda: len(kept(first)) == len(kept(second)) == 3)
            assert kept(first) | kept(second) == names
            for name in names:
                send(client, name, 1, 4)
                answered(client, name, 4)


def test_a_worker_that_is_configured_otherwise_is_named(
    server: Any, member: Member, capfd: pytest.CaptureFixture[str]
) -> None:
    declare(server, "press-1")
    with running(member("w-1")) as first, running(member("w-2", calibration={"images": 30})) as second:
        eventually(lambda: first.fleet._others and second.fleet._others)
        assert (list(first.fleet._others), list(second.fleet._others)) == (["w-2"], ["w-1"])
    assert "configured otherwise" in capfd.readouterr().out


def test_a_worker_of_no_fleet_needs_lines(settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"no lines: add a table .* or set worker.fleet = true"):
        Worker(settings()).startup()
