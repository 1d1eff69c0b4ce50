"""Servers with options of their own: users, TLS, replication, sentinels."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OLDEST = 7  # users.acl says who may read and who may write a key, in one user


def recent_server() -> str:
    """A `redis-server` on the PATH of 7.0 or newer, built with TLS as distributions do; else the test is skipped."""
    for folder in os.get_exec_path():
        if found := shutil.which("redis-server", path=folder):
            told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
            if (version := re.search(r"v=(\d+)\.", told)) and int(version[1]) >= OLDEST:
                return found
    pytest.skip(
        f"no redis-server of {OLDEST}.0 or newer on the PATH: the tests' own one knows no TLS and no such users"
    )


@contextmanager
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that keeps nothing on disk; it is killed at the end. Nobody has waited for its first answer."""
    command = [recent_server(), *options, "--bind", "127.0.0.1", "--dir", str(folder)]
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
