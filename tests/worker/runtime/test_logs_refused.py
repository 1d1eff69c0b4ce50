"""A log that cannot be written ends nothing."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from worker.runtime.logs import ToStructlog, configure_logs, log_crash


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, ToStructlog)]


def test_on_a_full_disk_the_process_goes_on_and_the_next_line_says_what_was_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Disk(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    monkeypatch.setattr("sys.stderr", disk)
    configure_logs("json")
    for number in range(3):
        structlog.get_logger().info("command", number=number)
    log_crash()
    disk.full = False
    for number in range(3, 5):
        structlog.get_logger().info("command", number=number)
    told = [json.loads(text) for text in disk.getvalue().splitlines()]
    assert [(event["number"], event.get("lines_refused")) for event in told] == [(3, 4), (4, None)]


LOGS_INTO_NOTHING = """
from worker.runtime.logs import configure_logs
import structlog
configure_logs("json")
for number in range(2000):
    structlog.get_logger().info("command", number=number)
print("went on")
"""


@pytest.mark.parametrize("into", ["a full disk", "a pipe that nobody reads"])
def test_a_stderr_that_takes_nothing_ends_no_process(into: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", LOGS_INTO_NOTHING],
            stdout=subprocess.PIPE,
            stderr=full if into == "a full disk" else writer,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
        os.close(full)
    assert ended.stdout == "went on\n"
