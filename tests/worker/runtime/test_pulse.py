"""Signs of life, and what is known of what threads are at."""

import threading
import time
from pathlib import Path

from tests.worker.helpers import eventually
from worker.runtime.crashes import CrashFile
from worker.runtime.notify import Notifier
from worker.runtime.pulse import Pulse, Timed


def test_the_health_probe_tells_when_the_loop_stands_still(tmp_path: Path) -> None:
    pulse = Pulse(Notifier({}), CrashFile(tmp_path, "station-1"))
    assert pulse.alive() == ""
    pulse.beat(time.monotonic() - 500)
    assert pulse.alive() == "no turn of the work loop for 500 s"
    pulse.beat(time.monotonic())
    assert pulse.alive() == ""


def test_the_oldest_call_that_has_not_returned_is_known() -> None:
    goes_on, before = threading.Event(), time.monotonic()
    timed: Timed[float, bool] = Timed(lambda seconds: goes_on.wait(seconds))
    assert timed.since >= before
    threads = [threading.Thread(target=timed, args=(60,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(timed._begun) == 2)
    oldest = timed.since
    timed(0)
    assert timed.since == oldest
    goes_on.set()
    for thread in threads:
        thread.join()
    assert timed.since > oldest
