"""What a run reads of its processes: CPU time and memory from /proc, stages and counts from the worker's /metrics."""

import os
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from worker.demo.processes import Child
from worker.errors import WorkerError

PATIENCE_SECONDS = 60.0  # for the next result
EDGE_SECONDS = 0.05  # within which the results of one batch have come
EDGE_POLL_SECONDS = 0.002
TICKS = os.sysconf("SC_CLK_TCK")

Sample = tuple[str, frozenset[tuple[str, str]]]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its threads so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine_seconds() -> float:
    """CPU time of the whole machine so far, idle left out; in a container it is the host's."""
    user, nice, system, _idle, _waiting, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, now and at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {
        name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if name[:2] == "Vm"
    }
    return kib["VmRSS"] * 1024, kib["VmHWM"] * 1024


@dataclass(frozen=True)
class Page:
    """The worker's /metrics at one time."""

    samples: Mapping[Sample, float]

    @classmethod
    def of_text(cls, text: str) -> "Page":
        families = text_string_to_metric_families(text)
        return cls({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; 0 if there is none."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by one label."""
        return {dict(has)[label]: value for (found, has), value in self.samples.items() if found == name}


@dataclass(frozen=True)
class Reading:
    """All counts so far, at one time: `at` in monotonic seconds, CPU time in seconds by process."""

    at: float
    page: Page
    cpu: Mapping[str, float]
    machine: float  # CPU time of all processes there are

    @property
    def answered(self) -> float:
        outcomes = ("scored", "unscored")
        return sum(self.page.total("mhpc_images_total", outcome=outcome) for outcome in outcomes)

    @property
    def learned(self) -> float:
        outcomes = ("learned", "quarantined")
        return sum(self.page.total("mhpc_images_total", outcome=outcome) for outcome in outcomes)


@dataclass(frozen=True)
class Window:
    """What lay between two readings."""

    first: Reading
    last: Reading

    @property
    def seconds(self) -> float:
        return self.last.at - self.first.at

    @property
    def answered(self) -> int:
        return round(self.last.answered - self.first.answered)

    @property
    def learned(self) -> int:
        return round(self.last.learned - self.first.learned)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage, less those of stages within it."""
        return self._by_stage("mhpc_stage_seconds_sum")

    @property
    def batches(self) -> int:
        """Forward passes."""
        return round(self._by_stage("mhpc_stage_seconds_count").get("forward", 0.0))

    @property
    def cpu(self) -> dict[str, float]:
        return {name: seconds - self.first.cpu[name] for name, seconds in self.last.cpu.items()}

    @property
    def others(self) -> float:
        """CPU time that processes took which are none of the run's."""
        return max(0.0, self.last.machine - self.first.machine - sum(self.cpu.values()))

    def _by_stage(self, name: str) -> dict[str, float]:
        before = self.first.page.by_label(name, "stage")
        return {stage: value - before[stage] for stage, value in self.last.page.by_label(name, "stage").items()}


class Probe:
    """Reads the processes of a run.

    Args:
        port: of the worker's HTTP.
        pids: of the processes whose CPU time is read, by name.
        results: the count of results so far; cheap, since it is asked again and again.
    """

    def __init__(self, port: int, pids: Mapping[str, int], results: Callable[[], int]) -> None:
        self.port = port
        self.pids = pids
        self.results = results

    def page(self) -> Page:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            return Page.of_text(answer.read().decode())

    def reading(self) -> Reading:
        cpu = {name: cpu_seconds(pid) for name, pid in self.pids.items()}
        at, machine = time.monotonic(), machine_seconds()
        return Reading(at, self.page(), cpu, machine)

    def edge(self, worker: Child) -> Reading:
        """A reading right after results have come: they come in batches, and half a batch would blur the count.

        Raises:
            WorkerError: none came within PATIENCE_SECONDS.
        """
        before, deadline = self.results(), time.monotonic() + PATIENCE_SECONDS
        while (now := self.results()) == before:
            worker.check()
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"no result for {PATIENCE_SECONDS:.0f} s; the end of the worker's log:\n{worker.tail()}"
                )
            time.sleep(EDGE_POLL_SECONDS)
        settled = time.monotonic() + EDGE_SECONDS
        while time.monotonic() < settled:
            time.sleep(5 * EDGE_POLL_SECONDS)
            now, before = self.results(), now
            if now == before:
                break
        return self.reading()

    def window(self, worker: Child, seconds: float) -> Window:
        """Two readings, so many seconds apart or a little more, between which images were counted."""
        first = self.edge(worker)
        while (left := first.at + seconds - time.monotonic()) > 0:
            worker.check()
            time.sleep(min(left, 0.5))
        while (last := self.edge(worker)).answered == first.answered:  # a result is there before it is counted
            pass
        return Window(first, last)
