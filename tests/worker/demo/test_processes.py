import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worker.helpers import eventually
from worker.demo.processes import ChildEndedError, private_redis, spawn, started_worker, wait_until_ready
from worker.errors import WorkerError
from worker.producer import connect


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends as it is read
        return False


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_redis_is_private_answers_and_ends_with_the_block(tmp_path: Path) -> None:
    with private_redis(tmp_path) as url:
        assert url.startswith("redis://127.0.0.1:")
        client = connect(url)
        pid = int(client.info("server")["process_id"])
        assert client.config_get("save")["save"] == ""
        client.close()
        assert alive(pid)
    assert not alive(pid)


def test_redis_ends_when_the_block_is_interrupted(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted() -> None:
        with private_redis(tmp_path) as url:
            pids.append(int(connect(url).info("server")["process_id"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not alive(pids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_children_end_when_the_demo_itself_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from worker.demo.processes import private_redis
from worker.producer import connect
with private_redis(Path({str(tmp_path)!r})) as url:
    print(connect(url).info("server")["process_id"], flush=True)
    time.sleep(60)
"""
    demo = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    pid = int(demo.stdout.readline())
    assert alive(pid)
    demo.kill()
    demo.wait()
    demo.stdout.close()
    eventually(lambda: not alive(pid))


def test_a_worker_that_ends_with_a_documented_code_hands_on_its_line_and_its_code(tmp_path: Path) -> None:
    code = "import sys; print('chatter'); print('the one line', file=sys.stderr); sys.exit(4)"
    child = spawn("the worker", python(code), tmp_path / "log")
    child.process.wait()
    with pytest.raises(ChildEndedError, match=r"^the worker ended by itself with exit code 4: the one line$") as caught:
        child.check()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("code", "exit_code", "text"),
    [
        ("raise RuntimeError('boom')", 1, "exit code 1: Traceback"),
        ("pass", 1, "exit code 0: its log is empty"),
        ("import os; os.kill(os.getpid(), 9)", 1, "was killed by SIGKILL"),
    ],
)
def test_any_other_end_shows_the_end_of_the_log(tmp_path: Path, code: str, exit_code: int, text: str) -> None:
    child = spawn("the worker", python(code), tmp_path / "log")
    child.process.wait()
    with pytest.raises(ChildEndedError, match=text) as caught:
        child.check()
    assert caught.value.exit_code == exit_code


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.demo.processes.STOP_SECONDS", 0.3)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = spawn("it", python(code), tmp_path / "log")
    eventually(lambda: child.tail() == "up")
    assert child.stop() == -signal.SIGKILL


def test_settings_for_another_worker_do_not_reach_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHPC_REDIS__URL", "redis://plant:6379/0")
    child = spawn("it", python("import os; print([n for n in os.environ if 'MHPC' in n])"), tmp_path / "log")
    assert child.process.wait() == 0
    assert child.tail() == "[]"


def test_a_worker_that_never_gets_ready_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.demo.processes.START_SECONDS", 0.3)
    child = spawn("the worker", python("import time; print('loading', flush=True); time.sleep(60)"), tmp_path / "log")
    try:
        with pytest.raises(WorkerError, match=r"the worker is not ready after 0 s; the end of its log"):
            wait_until_ready(child, 1)
    finally:
        child.stop()


def test_a_configuration_that_the_worker_refuses_ends_with_its_code(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[redis]\nurl = 'nonsense'\n")
    with (
        started_worker(config, tmp_path / "log") as worker,
        pytest.raises(ChildEndedError, match=r"exit code 2: .*redis\.url"),
    ):
        wait_until_ready(worker, 1)
