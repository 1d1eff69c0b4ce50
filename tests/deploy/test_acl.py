"""deploy/redis/users.acl lets each user do what it must, and no more, on a real server."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from tests.conftest import free_port
from tests.servers import started
from tests.worker.faults.processes import results, running_worker, state, write_config
from tests.worker.helpers import encoded, eventually, item, message, picture
from worker.dead import Replay, find, purge
from worker.errors import RedisUnreachableError
from worker.message import Image
from worker.producer import Producer
from worker.settings import LINES_KEY, WORKERS_KEY, RedisSettings, Settings
from worker.streams.client import connect
from worker.streams.line_streams import ANSWERING, LineStreams
from worker.streams.rights import RIGHTS, missing_fleet_rights, missing_rights
from worker.streams.upkeep import delete_idle_consumers
from worker.views import command, known_lines, line_status, unknown

USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
LINE = "press-3"
IMAGES = f"mhpc:{{{LINE}}}:images"
IN_PARTS = ("script", "xgroup", "xinfo")  # commands whose rights are given by subcommand
FOR_CHECK = {"multi", "exec"}  # used by `mhpc-worker check` alone
FREE = {"auth", "hello"}  # allowed before anybody has logged in


class Guarded:
    """A server with these users, the passwords filled in as the file's head says."""

    def __init__(self, folder: Path) -> None:
        self.port, self.socket, self.folder = free_port(), folder / "redis.sock", folder
        told = re.sub("CHANGE-ME-([A-Z]+)", lambda match: f"secret-of-{match[1].lower()}", USERS.read_text())
        lines = [text for text in told.splitlines() if not text.startswith("#")]
        self.users = folder / "users.acl"
        self.users.write_text("\n".join([*lines, "user admin on >secret-of-admin ~* &* +@all"]) + "\n")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def options(self) -> list[str]:
        return ["--port", str(self.port), "--unixsocket", str(self.socket), "--aclfile", str(self.users), "--save", ""]

    def client(self, user: str) -> Any:
        """Over the socket: MONITOR then tells it from the worker."""
        return redis.Redis(
            unix_socket_path=str(self.socket), protocol=2, driver_info=None, username=user, password=f"secret-of-{user}"
        )

    def password_file(self, user: str) -> Path:
        path = self.folder / f"{user}.secret"
        path.write_text(f"secret-of-{user}\n")
        return path

    def settings(self, user: str) -> RedisSettings:
        return RedisSettings.model_validate(
            {"url": self.url, "username": user, "password_file": str(self.password_file(user))}
        )


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    server = Guarded(tmp_path)
    with started(tmp_path, *server.options()):
        eventually(server.socket.exists)
        eventually(server.client("admin").ping)
        yield server


def granted(user: str) -> set[str]:
    (text,) = re.findall(rf"^user {user} (.*?)(?: \(|$)", USERS.read_text(), re.MULTILINE)
    return {word[1:] for word in text.split() if word.startswith("+")}


def used(monitor: Any) -> set[str]:
    """Rights that were made use of over TCP and in scripts, up to an ECHO."""
    names = set()
    while not (seen := monitor.next_command())["command"].startswith("ECHO"):
        if seen["client_type"] in ("tcp", "lua"):
            first, *others = seen["command"].lower().split(" ", 2)
            names.add(f"{first}|{others[0]}" if first in IN_PARTS else first)
    return names - FREE


def send(client: Any, first: int, last: int, **changes: Any) -> None:
    for start in range(first, last, 4):
        client.xadd(IMAGES, {"batch": message(*(item(str(i), **changes) for i in range(start, start + 4)))})


def live(guarded: Guarded, config: Path) -> None:
    """A worker from its first part to SIGTERM, by way of all that a line goes through."""
    admin, camera, person = (guarded.client(user) for user in ("admin", "producer", "operator"))
    admin.xgroup_create(IMAGES, ANSWERING, id="0", mkstream=True)
    send(camera, 0, 80)
    for consumer in ("gone", f"faults-{LINE}"):
        assert admin.xreadgroup(ANSWERING, consumer, {IMAGES: ">"}, count=1)
    camera.xadd(IMAGES, {"batch": b"no message"})
    with running_worker(config) as worker:
        eventually(lambda: state(admin, LINE).get("phase") == "scoring")
        odd = encoded(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))
        send(camera, 80, 84, data=odd)
        review = f"mhpc:{{{LINE}}}:review"
        eventually(lambda: admin.xlen(review))
        part = admin.xrange(review)[-1][1]
        for asked in (["drop", part[b"entry"].decode(), part[b"id"].decode()], ["relearn"]):
            assert command(person, LINE, asked[0], asked[1:], "test", 30).ok
        send(camera, 84, 96)
        eventually(lambda: len(results(admin, LINE)) == 96)
        eventually(lambda: admin.xlen(IMAGES) < 10)  # trimmed
        keeper = LineStreams(connect(guarded.settings("worker")), LINE)
        assert keeper.acquire("another#1", 0)[2] > 0  # seconds until the worker's lease ends, were it not renewed
        assert delete_idle_consumers(keeper, int(state(admin, LINE)["epoch"]), idle_ms=0)  # as after a day
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert admin.xlen(f"mhpc:{{{LINE}}}:dead") == 1


def test_a_workers_life_uses_each_of_its_rights_and_is_refused_nothing(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, guarded.url, LINE, tmp_path)
    monkeypatch.setenv("MHPC_REDIS__USERNAME", "worker")
    monkeypatch.setenv("MHPC_REDIS__PASSWORD_FILE", str(guarded.password_file("worker")))
    monkeypatch.setenv("MHPC_STREAMS__CLAIM_SECONDS", "0.1")
    monkeypatch.setenv("MHPC_STREAMS__UNIQUE_IDS", "8")
    monkeypatch.setenv("MHPC_WORKER__FLEET", "true")
    admin = guarded.client("admin")
    with admin.monitor() as monitor:  # the server keeps what was not read yet
        live(guarded, config)
        admin.echo("end")
        assert used(monitor) | FOR_CHECK == granted("worker") == RIGHTS
    assert admin.acl_log() == []


def test_a_right_that_is_missing_is_named(guarded: Guarded) -> None:
    admin = guarded.client("admin")
    client: Any = connect(guarded.settings("worker"))
    assert missing_rights(client, LINE) == []
    for right in sorted(RIGHTS):
        admin.acl_setuser("worker", enabled=True, commands=[f"-{right}"])
        assert missing_rights(client, LINE) == [right]
        admin.acl_setuser("worker", enabled=True, commands=[f"+{right}"])
    assert missing_rights(client, LINE) == []
    assert admin.dbsize() == 0


def test_of_a_fleet_the_worker_reads_the_lines_and_announces_itself_and_the_operator_declares_them(
    guarded: Guarded,
) -> None:
    admin, person, reader = (guarded.client(user) for user in ("admin", "operator", "reader"))
    worker: Any = connect(guarded.settings("worker"))
    assert missing_fleet_rights(worker) == {}
    assert (person.hset(LINES_KEY, LINE, "{}"), person.hdel(LINES_KEY, "none")) == (1, 0)
    assert worker.hgetall(LINES_KEY) == reader.hgetall(LINES_KEY) == person.hgetall(LINES_KEY) == {LINE.encode(): b"{}"}
    refused: list[Callable[[], Any]] = [
        lambda: worker.hset(LINES_KEY, LINE, "{}"),
        lambda: reader.hset(LINES_KEY, LINE, "{}"),
        lambda: person.hset(WORKERS_KEY, "a", "{}"),
        lambda: guarded.client("producer").hgetall(LINES_KEY),
    ]
    for attempt in refused:
        with pytest.raises(redis.exceptions.NoPermissionError):
            attempt()
    admin.acl_setuser("worker", enabled=True, commands=["-hdel"])
    assert missing_fleet_rights(worker) == {WORKERS_KEY: ["hdel"]}


def check(config: Path, guarded: Guarded) -> subprocess.CompletedProcess[str]:
    login = {"MHPC_REDIS__USERNAME": "worker", "MHPC_REDIS__PASSWORD_FILE": str(guarded.password_file("worker"))}
    command = [sys.executable, "-m", "worker", "check", "--config", str(config)]
    return subprocess.run(command, env={**os.environ, **login}, capture_output=True, text=True, check=False)


def test_check_passes_and_names_the_rights_that_are_missing(guarded: Guarded, tmp_path: Path) -> None:
    config = write_config(tmp_path, guarded.url, LINE, tmp_path)
    well = check(config, guarded)
    guarded.client("admin").acl_setuser("worker", enabled=True, commands=["-xadd", "-xgroup|create"])
    refused = check(config, guarded)
    assert (well.returncode, well.stderr) == (0, "")
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    for part in ("may not: xadd, xgroup|create", f"mhpc:{{{LINE}}}:*", "deploy/redis/users.acl"):
        assert part in refused.stderr
    for ended in (well, refused):
        assert "secret-of" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "call",
    [
        "PING", "TIME", "INFO", "CONFIG GET *", "CONFIG SET save 1", "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0",
        "DBSIZE", "EVAL return(1) 0", "EVALSHA 0000 0", "SCRIPT LOAD x", "FUNCTION LIST", "ACL LIST", "ACL WHOAMI",
        "CLIENT LIST", "MONITOR", "SHUTDOWN", "SAVE", "MULTI", "PUBLISH a b", "SUBSCRIBE a", "SELECT 1",
        f"XLEN {IMAGES}", f"XRANGE {IMAGES} - +", f"XREAD STREAMS {IMAGES} 0", f"XINFO STREAM {IMAGES}",
        f"DEL {IMAGES}", f"XTRIM {IMAGES} MAXLEN 0", f"XDEL {IMAGES} 0-1", f"XGROUP CREATE {IMAGES} g 0",
        f"EXPIRE {IMAGES} 1", f"RENAME {IMAGES} a", f"COPY {IMAGES} a", f"TYPE {IMAGES}", f"OBJECT ENCODING {IMAGES}",
        "XADD mhpc:{press-3}:scores * a b", "XADD mhpc:{press-3}:control * a b", "XADD mhpc:{press-3}:dead * a b",
        "XADD other * a b", "SET mhpc:{press-3}:lease a", "GET mhpc:{press-3}:lease", "HGETALL mhpc:{press-3}:state",
    ],
)  # fmt: skip
def test_a_producer_can_add_pictures_and_nothing_else(guarded: Guarded, call: str) -> None:
    producer = guarded.client("producer")
    send(producer, 0, 4)
    with pytest.raises(redis.exceptions.NoPermissionError):
        producer.execute_command(*call.split())


def test_a_reader_sees_all_and_writes_nothing(guarded: Guarded) -> None:
    send(guarded.client("producer"), 0, 4)
    guarded.client("admin").xgroup_create(IMAGES, ANSWERING, id="0")
    reader = guarded.client("reader")
    assert known_lines(reader) == [LINE]
    assert line_status(reader, LINE)["results"] == 0
    assert len(reader.xrange(IMAGES)) == len(reader.xrevrange(IMAGES)) == len(reader.xread({IMAGES: "0"})[0][1]) == 1
    streams = LineStreams(reader, LINE)
    attempts: list[Callable[[], Any]] = [
        lambda: reader.xadd(IMAGES, {"batch": b""}),
        lambda: reader.xadd(streams.control, {"command": b""}),
        lambda: reader.set(streams.lease, "me"),
        lambda: reader.hset(streams.state_key, "phase", "scoring"),
        lambda: reader.xack(IMAGES, ANSWERING, "0-1"),
        lambda: reader.xtrim(IMAGES, maxlen=0),
        lambda: reader.xreadgroup(ANSWERING, "me", {IMAGES: ">"}),
        lambda: reader.delete(IMAGES),
        lambda: reader.eval("return 1", 0),
        lambda: reader.flushall(),
        lambda: reader.config_get("*"),
        lambda: reader.get("other"),
    ]
    for attempt in attempts:
        with pytest.raises(redis.exceptions.NoPermissionError):
            attempt()


def test_an_operator_sends_commands_and_pictures_and_clears_dead_letters_and_writes_no_other_key(
    guarded: Guarded,
) -> None:
    person = guarded.client("operator")
    streams = LineStreams(person, LINE)
    reply = command(person, LINE, "pause", [], "test", 0.1)
    assert "no answer" in reply.text
    assert person.xlen(streams.control) == 1
    Producer(connect(guarded.settings("operator")), LINE).send([Image("a", "png", encoded(picture()))])
    letter = (
        guarded.client("admin").xadd(streams.dead, {"entry": "", "id": "a", "payload": encoded(picture())}).decode()
    )
    assert "is entry" in Replay(streams, cap=1 << 20)(find(streams, letter))
    assert (person.xlen(streams.dead), person.xlen(IMAGES)) == (0, 2)
    assert purge(streams, ["0-1"]) == 0
    for key in (streams.scores, streams.dead, streams.replies, streams.review):
        with pytest.raises(redis.exceptions.NoPermissionError):
            person.xadd(key, {"a": "b"})
    for key in (IMAGES, streams.scores):
        with pytest.raises(redis.exceptions.NoPermissionError):
            person.xdel(key, "0-1")
    assert person.xdel(streams.control, person.xrange(streams.control)[0][0]) == 1  # a command is taken back


def test_nobody_comes_in_without_a_name(guarded: Guarded) -> None:
    with pytest.raises(RedisUnreachableError, match="refuses"):
        connect(RedisSettings.model_validate({"url": guarded.url}))


def test_a_workers_own_user_may_look_and_tell_a_keeper(guarded: Guarded) -> None:
    send(guarded.client("producer"), 0, 4)
    worker = guarded.client("worker")
    assert line_status(worker, LINE)["problem"] is None
    assert line_status(worker, "another")["problem"] is None
    assert "no answer" in command(worker, LINE, "pause", [], "test", 0.1).text
    assert unknown(Settings(redis=guarded.settings("worker")), worker, LINE) == ""
    for user in ("worker", "reader", "operator"):
        assert "line another is not at" in unknown(
            Settings(redis=guarded.settings(user)), guarded.client(user), "another"
        )
