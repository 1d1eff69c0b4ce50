"""What a service manager hears, on a real datagram socket, of the process that it would run."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.helpers import eventually
from tests.worker.playing import answered, send
from tests.worker.test_process import Process
from worker.errors import ConfigurationError
from worker.runtime.notify import FEEDS, Notifier

WATCHDOG_SECONDS = 2.0


class Manager:
    """The manager's side of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(60)

    def heard(self) -> list[str]:
        """The next message's lines; waits for it."""
        return self.socket.recv(4096).decode().split("\n")

    def hears(self, line: str) -> list[str]:
        """The first message from now on with this line."""
        while line not in (message := self.heard()):
            pass
        return message

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing comes for so long, once what was sent before is taken."""
        self.socket.settimeout(0)
        while True:
            try:
                self.heard()
            except BlockingIOError:
                break
        self.socket.settimeout(seconds)
        try:
            return not self.heard()
        except (TimeoutError, BlockingIOError):  # the latter for 0
            return True
        finally:
            self.socket.settimeout(60)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a manager sets for a unit with a watchdog."""
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(round(WATCHDOG_SECONDS * 1e6))}


# -- the protocol ------------------------------------------------------------------------------------------------------


def test_what_is_told_comes_as_one_datagram(manager: Manager, environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    notifier.tell("READY=1", "STATUS=serves press-3 on cpu")
    assert manager.heard() == ["READY=1", "STATUS=serves press-3 on cpu"]
    with notifier.reloading():
        first, clock = manager.heard()
        assert first == "RELOADING=1"
        assert 0 <= time.monotonic() - int(clock.removeprefix("MONOTONIC_USEC=")) / 1e6 < 60
        assert manager.silent_for(0)
    assert manager.heard() == ["READY=1"]


def test_a_reload_that_fails_ends_as_one_that_does_not(manager: Manager, environment: dict[str, str]) -> None:
    with pytest.raises(redis.ConnectionError), Notifier(environment).reloading():
        raise redis.ConnectionError
    assert manager.heard()[0] == "RELOADING=1"
    assert manager.heard() == ["READY=1"]


def test_an_abstract_socket_is_reached_too(line: str) -> None:
    manager = Manager(f"\0{line}")
    Notifier({"NOTIFY_SOCKET": f"@{line}"}).tell("READY=1")
    assert manager.heard() == ["READY=1"]


def test_the_watchdog_is_fed_no_more_often_than_it_asks(
    manager: Manager, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier, now = Notifier(environment), 1000.0
    monkeypatch.setattr("worker.runtime.notify.time.monotonic", lambda: now)
    for _ in range(100):
        notifier.feed()
    assert manager.heard() == ["WATCHDOG=1"]
    assert manager.silent_for(0)
    now += WATCHDOG_SECONDS / FEEDS
    notifier.feed()
    assert manager.heard() == ["WATCHDOG=1"]


def test_a_loop_whose_threads_hang_feeds_no_watchdog(
    manager: Manager, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier, now = Notifier(environment), 1000.0
    monkeypatch.setattr("worker.runtime.notify.time.monotonic", lambda: now)
    notifier.feed(since=now - WATCHDOG_SECONDS)
    assert manager.silent_for(0)
    notifier.feed(since=now)
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize("asked", [{"WATCHDOG_USEC": ""}, {"WATCHDOG_PID": "1"}])
def test_a_watchdog_that_asks_nothing_of_this_process_is_not_fed(
    manager: Manager, environment: dict[str, str], asked: dict[str, str]
) -> None:
    Notifier({**environment, **asked}).feed()
    assert manager.silent_for(0)
    Notifier({**environment, "WATCHDOG_PID": str(os.getpid())}).feed()
    assert manager.heard() == ["WATCHDOG=1"]


def test_without_a_manager_nothing_is_sent_and_nothing_fails() -> None:
    notifier = Notifier({})
    notifier.tell("READY=1")
    notifier.feed()


def test_a_manager_that_is_gone_holds_nobody_up_and_is_told_of_once(
    tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    notifier = Notifier(environment)
    for _ in range(3):
        notifier.tell("READY=1")
    assert capsys.readouterr().out.count("the service manager is not reached") == 1
    manager = Manager(str(tmp_path / "notify"))
    notifier.tell("READY=1")
    assert manager.heard() == ["READY=1"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("NOTIFY_SOCKET", "run/notify"), ("WATCHDOG_USEC", "2s"), ("WATCHDOG_USEC", "-1"), ("WATCHDOG_USEC", "0")],
)
def test_what_no_manager_sets_is_refused(environment: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is '{value}', expected .*; leave it to the service manager"):
        Notifier({**environment, name: value})


# -- the worker's process ----------------------------------------------------------------------------------------------


@pytest.fixture
def start(
    tmp_path: Path, private_redis: PrivateRedis, line: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def start(failpoint: str = "") -> Process:
        started.append(Process(tmp_path, private_redis.url, line, failpoint))
        return started[-1]

    yield start
    for process in started:
        process.process.kill()
        process.process.wait()


def halted(process: "subprocess.Popen[Any]") -> bool:
    """Whether SIGSTOP has taken effect."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_the_manager_hears_of_a_workers_whole_life(
    start: Callable[[], Process], manager: Manager, private_redis: PrivateRedis, line: str
) -> None:
    process = start()
    assert manager.heard() == ["READY=1", f"STATUS=serves {line} on cpu"]
    assert httpx.get(f"http://127.0.0.1:{process.event('started')['port']}/healthz", timeout=30).text == "ok\n"
    manager.hears("WATCHDOG=1")

    process.config.write_text(process.config.read_text() + f'[[lines]]\nname = "{line}-more"\n')
    process.process.send_signal(signal.SIGHUP)
    assert manager.hears("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
    assert manager.hears("READY=1") == ["READY=1"]
    serves = f"STATUS=serves {line}, {line}-more on cpu"
    assert manager.hears(serves)

    process.process.send_signal(signal.SIGSTOP)
    eventually(lambda: halted(process.process))
    assert manager.silent_for(WATCHDOG_SECONDS)
    process.process.send_signal(signal.SIGCONT)
    manager.hears("WATCHDOG=1")

    private_redis.kill()
    manager.hears("STATUS=Redis is not reached; trying again for ever")
    manager.hears("WATCHDOG=1")  # a server that is away is no reason to kill the worker
    private_redis.start()
    manager.hears(serves)

    process.process.send_signal(signal.SIGTERM)
    manager.hears("STOPPING=1")
    assert process.process.wait(60) == 0


def test_a_work_loop_that_hangs_feeds_no_watchdog_while_other_threads_live_on(
    start: Callable[..., Process], manager: Manager, private_redis: PrivateRedis, line: str
) -> None:
    client = redis.Redis(port=private_redis.port, protocol=2)
    first = start("forward:hang")
    port = first.event("started")["port"]
    manager.hears("WATCHDOG=1")
    send(client, line, 1, 4)
    eventually(lambda: manager.silent_for(WATCHDOG_SECONDS))
    assert "mhpc_pending_entries" in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text

    assert first.end(signal.SIGABRT) == -signal.SIGABRT  # as the manager does then
    second = start()  # it takes what was in hand one by one, as after a crash
    assert "Aborted" in second.event("the process before crashed; what it had in hand is tried one by one")["traceback"]
    assert answered(client, line, 4)
