"""A short `make chaos`."""

import subprocess
import sys


def test_kills_at_any_moment_lose_nothing_and_count_nothing_twice() -> None:
    """In a process of its own: this one has threads, and cannot be forked."""
    command = [sys.executable, "-m", "tests.worker.faults.chaos", "--kills", "12", "--images", "600"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "nothing lost" in ended.stdout
