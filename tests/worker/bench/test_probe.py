import os
import subprocess
import sys
import time
from typing import cast

import pytest

from worker.bench.probe import Page, Probe, Reading, Window, cpu_seconds, machine_seconds, memory_bytes
from worker.demo.processes import Child

TEXT = """# TYPE mhpc_images counter
mhpc_images_total{line="a",outcome="scored"} 40.0
mhpc_images_total{line="b",outcome="unscored"} 2.0
mhpc_images_total{line="a",outcome="learned"} 7.0
mhpc_images_total{line="a",outcome="quarantined"} 1.0
mhpc_images_total{line="a",outcome="dead"} 9.0
# TYPE mhpc_stage_seconds histogram
mhpc_stage_seconds_bucket{le="+Inf",stage="forward"} 5.0
mhpc_stage_seconds_sum{stage="forward"} 2.5
mhpc_stage_seconds_count{stage="forward"} 5.0
mhpc_stage_seconds_sum{stage="read"} 0.5
mhpc_stage_seconds_count{stage="read"} 10.0
"""
ZERO = "".join(f"{line.rpartition(' ')[0]} 0.0\n" for line in TEXT.splitlines() if line[0] != "#")


def test_a_page_sums_a_metric_over_the_labels_that_are_left_open() -> None:
    page = Page.of_text(TEXT)
    assert page.total("mhpc_images_total", line="a") == 57
    assert page.total("mhpc_images_total", outcome="scored") == 40
    assert page.total("mhpc_nothing") == 0
    assert page.by_label("mhpc_stage_seconds_sum", "stage") == {"forward": 2.5, "read": 0.5}


def test_a_window_is_the_difference_of_two_readings() -> None:
    first = Reading(100.0, Page.of_text(ZERO), {"worker": 3.0, "redis": 1.0}, machine=50.0)
    last = Reading(110.0, Page.of_text(TEXT), {"worker": 18.0, "redis": 1.5}, machine=70.0)
    window = Window(first, last)
    assert (window.seconds, window.answered, window.learned, window.batches) == (10.0, 42, 8, 5)
    assert window.stages == {"forward": 2.5, "read": 0.5}
    assert window.cpu == {"worker": 15.0, "redis": 0.5}
    assert window.others == pytest.approx(4.5)


class Counting(Probe):
    """Whose worker has published results at its first three edges, and counts them at the last."""

    def __init__(self) -> None:
        super().__init__(0, {}, lambda: 0)
        self.pages = iter([ZERO, ZERO, ZERO, TEXT])

    def edge(self, worker: Child) -> Reading:
        return Reading(time.monotonic(), Page.of_text(next(self.pages)), {}, machine=0.0)


def test_a_window_ends_when_what_came_in_it_is_counted() -> None:
    child = cast(Child, None)  # none is asked for: the window is over at once
    assert Counting().window(child, seconds=0.0).answered == 42


def test_cpu_time_and_memory_of_a_process_are_the_kernels() -> None:
    own, begun = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - begun < 0.2:
        pass
    assert cpu_seconds(os.getpid()) - own == pytest.approx(0.2, abs=0.1)
    now, peak = memory_bytes(os.getpid())
    assert 1 << 20 < now <= peak


def test_the_machine_has_used_as_much_as_any_of_its_processes() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert cpu_seconds(child.pid) < 1 < machine_seconds()
        child.kill()
