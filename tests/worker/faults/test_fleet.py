"""A short `make fleet`."""

import subprocess
import sys


def test_lines_are_taken_over_and_spread_when_workers_are_killed_and_come() -> None:
    """In a process of its own: this one has threads, and cannot be forked."""
    sizes = ["--workers", "4", "--lines", "12", "--kill", "1", "--add", "1", "--lease", "8"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.worker.faults.fleet", *sizes], capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "each line kept by one, nothing lost, nothing twice" in ended.stdout
