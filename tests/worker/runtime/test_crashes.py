import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.runtime.crashes import CrashFile

PROGRAM = """
import faulthandler, os, signal, sys, threading, time
from pathlib import Path
from worker.runtime.crashes import CrashFile
file = CrashFile(Path(sys.argv[1]), "hall/7")
print(file.open(), flush=True)
if sys.argv[2] == "end":
    file.close()
elif sys.argv[2] == "note":
    file.note("cuda failed: out of memory")
    file.close()
elif sys.argv[2] == "hang":
    file.watch(time.monotonic(), 0.5)
    threading.Event().wait()
elif sys.argv[2] == "live":
    for _ in range(10):
        file.watch(time.monotonic(), 4.0)  # so much longer than from one to the next: the machine may stand still
        time.sleep(0.5)
    file.close()
    time.sleep(5.0)
elif sys.argv[2] == "old":
    while True:  # it turns, but what it has threads do hangs
        file.watch(0.0, 0.5)
else:
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


def ended(folder: Path, how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), how], capture_output=True, text=True)
    return done.stdout.splitlines()[-1], done.returncode


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_is_known_to_the_next_process_and_to_no_later_one(tmp_path: Path, how: str) -> None:
    assert ended(tmp_path, how) == ("False", -getattr(signal, how))
    assert ended(tmp_path, "end") == ("True", 0)
    assert ended(tmp_path, "end") == ("False", 0)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "end"])
def test_a_kill_is_no_crash(tmp_path: Path, how: str) -> None:
    ended(tmp_path, how)
    assert ended(tmp_path, "end") == ("False", 0)


def test_a_crash_leaves_its_traceback_for_people(tmp_path: Path) -> None:
    ended(tmp_path, "SIGSEGV")
    ended(tmp_path, "end")
    assert "Segmentation fault" in (tmp_path / ".hall%2F7.crash.last").read_text()


@pytest.mark.parametrize("how", ["hang", "old"])
def test_a_process_that_hangs_ends_by_itself_as_one_that_crashed(tmp_path: Path, how: str) -> None:
    assert ended(tmp_path, how) == ("False", 1)
    assert ended(tmp_path, "end") == ("True", 0)
    assert "Timeout" in (tmp_path / ".hall%2F7.crash.last").read_text()


def test_a_process_that_gives_signs_of_life_lives_on_and_needs_none_once_it_ends(tmp_path: Path) -> None:
    assert ended(tmp_path, "live") == ("False", 0)
    assert ended(tmp_path, "end") == ("False", 0)


def test_a_note_is_to_the_next_process_as_a_crash(tmp_path: Path) -> None:
    assert ended(tmp_path, "note") == ("False", 0)
    assert ended(tmp_path, "end") == ("True", 0)
    assert (tmp_path / ".hall%2F7.crash.last").read_text() == "cuda failed: out of memory"


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert CrashFile(blocked, "a").open() is False
    assert "crashes cannot be told from kills" in capsys.readouterr().out
