"""A short `make failover`."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("on", ["sentinel", "cluster"])
def test_what_a_replica_was_told_before_it_took_over_is_answered_and_learned_once_by_the_fleet(
    on: str,
) -> None:
    """In a process of its own: this one has threads, and cannot be forked."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.worker.faults.failover", "--on", on], capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "each line kept by one, nothing twice, lost what nobody kept" in ended.stdout
