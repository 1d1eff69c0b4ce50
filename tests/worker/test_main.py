"""Signals that come while the command line is imported: a module in place of redis-py's sends them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "the module": [sys.executable, "-m", "worker"],
    "the script": [str(Path(sys.executable).with_name("mhpc-worker"))],
}
FIRST = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]  # of its PID namespace
SURVIVED = 70


def started(tmp_path: Path, number: int, *command: str) -> tuple[int, str]:
    """Exit code and errors of a command to which a signal comes while it imports; SURVIVED where it goes on."""
    (tmp_path / "redis.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nos._exit({SURVIVED})\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("program", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("command", ["status", "run"])
def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_traceback(
    program: list[str], command: str, tmp_path: Path
) -> None:
    assert started(tmp_path, signal.SIGINT, *program, command) == (130, "")


def test_who_started_a_command_that_ignores_ctrl_c_has_it_ignored(tmp_path: Path) -> None:
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    assert started(tmp_path, signal.SIGINT, *ignoring, *COMMANDS["the module"], "status") == (SURVIVED, "")


@pytest.mark.parametrize(("command", "code"), [("run", SURVIVED), ("status", -signal.SIGHUP)])
def test_sighup_waits_for_a_worker_that_is_imported_and_ends_any_other_command(
    command: str, code: int, tmp_path: Path
) -> None:
    assert started(tmp_path, signal.SIGHUP, *COMMANDS["the module"], command) == (code, "")


@pytest.mark.skipif(
    subprocess.run([*FIRST, "true"], capture_output=True, check=False).returncode != 0,
    reason="no PID namespaces",
)
def test_sigterm_ends_a_worker_that_is_imported_in_a_container_too(tmp_path: Path) -> None:
    assert started(tmp_path, signal.SIGTERM, *COMMANDS["the module"], "run") == (-signal.SIGTERM, "")
    assert started(tmp_path, signal.SIGTERM, *FIRST, *COMMANDS["the module"], "run") == (128 + signal.SIGTERM, "")
