"""`make soak`: does a worker's memory grow under long use, with one input in twenty malformed?"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis
from numpy.typing import NDArray
from scipy import stats

from tests.conftest import PrivateRedis
from tests.worker.faults.malformed import malformed_entry, malformed_image
from tests.worker.faults.processes import patient, running_worker, write_config
from tests.worker.helpers import eventually, item, message

LINE, BATCH = "soak", 4
MALFORMED = 0.04  # of the entries, and of the images in the others: about one input in twenty
SAMPLE_SECONDS = 5.0
WARM_UP = 0.2  # share of the samples
BLOCKS = 8  # of five minutes and more in an hour: memory that sways has returned within one
OUTSTANDING = 200  # images that wait for an answer, at most
KIB_PER_MINUTE = 10.0  # what grows less is no leak
STANDARD_ERRORS = 3.0
COUNTED = 5000  # answers read at once


class Sample(NamedTuple):
    """Minutes since it began, and KiB that are resident: all, and anonymous ones."""

    minute: float
    resident: float
    anonymous: float


class Growth(NamedTuple):
    """KiB in a minute, its standard error, and what that rests on."""

    slope: float
    error: float
    degrees: int  # of freedom

    @property
    def told_interval(self) -> str:
        """Of 95 %, by Student's t."""
        half = float(stats.t.ppf(0.975, self.degrees)) * self.error
        return f"{self.slope - half:.1f} to {self.slope + half:.1f}"

    @property
    def leaks(self) -> bool:
        return self.slope > KIB_PER_MINUTE and self.slope > STANDARD_ERRORS * self.error


def growth(minutes: NDArray[np.float64], kib: NDArray[np.float64]) -> Growth:
    """The mean growth from one block of samples to the next, behind the warm-up.

    A step stays, so that it is a walk's error: a line's, whose residuals are to be independent, calls a single step a
    trend. Where memory sways and returns, this error is larger than it need be. Of a walk that grows by a variance of
    1 in a block, growths between blocks' means have 2/3, neighbours share 1/6, and n of them sum to n - 1/3.
    """
    start = int(len(kib) * WARM_UP)
    blocks = min(BLOCKS, (len(kib) - start) // 2)
    x, y = (np.array([part.mean() for part in np.array_split(of[start:], blocks)]) for of in (minutes, kib))
    slopes = np.diff(y) / np.diff(x)
    n = len(slopes)
    of_mean = (n - 1 / 3) / n**2
    of_one = (2 / 3 - of_mean) * n / (n - 1)  # as their scatter has it
    return Growth(float(slopes.mean()), float(slopes.std(ddof=1)) * (of_mean / of_one) ** 0.5, n - 1)


def resident_kib(pid: int) -> tuple[float, float]:
    """All that is resident, and what of it is anonymous: pages of libraries come in as they are first used."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {name: float(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "Rss" in name}
    return sum(kib.values()), kib["RssAnon"]


def resident_by_file(pid: int) -> Counter[str]:
    """KiB that are resident by the mapped file's name or what the kernel calls it, as [heap]; else as anonymous."""
    kib, name = Counter[str](), ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            name = Path(rest[4]).name if len(rest) == 5 else "anonymous"
        elif first == "Rss:":
            kib[name] += int(rest[0])
    return kib


class Sender:
    """Sends images at a rate, some malformed, and counts what comes of them; streams may be trimmed meanwhile."""

    def __init__(self, client: redis.Redis, rate: float, seed: int) -> None:
        self.client, self.rate, self.dice = client, rate, random.Random(seed)
        self.sent = self.malformed = 0
        self.answers = Counter[str]()
        self._last = dict.fromkeys(("scores", "dead"), "0-0")
        self._began = time.monotonic()

    @property
    def outstanding(self) -> int:
        return self.sent - self.answers.total()

    def send_what_is_due(self) -> None:
        due = (time.monotonic() - self._began) * self.rate
        while self.sent < due and self.outstanding < OUTSTANDING:
            self.client.xadd(self._key("images"), self._entry())

    def _entry(self) -> dict[Any, Any]:
        if self.dice.random() < MALFORMED:
            self.sent, self.malformed = self.sent + 1, self.malformed + 1
            return malformed_entry(self.dice)
        bad = [self.dice.random() < MALFORMED for _ in range(BATCH)]
        names = [str(self.sent + place) for place in range(BATCH)]
        self.sent, self.malformed = self.sent + BATCH, self.malformed + sum(bad)
        pairs = zip(bad, names, strict=True)
        return {"batch": message(*(malformed_image(self.dice, name) if cut else item(name) for cut, name in pairs))}

    def count(self) -> None:
        for kind in self._last:
            while entries := self._behind(kind):
                self.answers[kind] += len(entries)
                self._last[kind] = entries[-1][0].decode()

    def _behind(self, kind: str) -> Any:
        return self.client.xrange(self._key(kind), min=f"({self._last[kind]}", count=COUNTED)

    def is_done(self) -> bool:
        self.count()
        return not self.outstanding

    def _key(self, kind: str) -> str:
        return f"mhpc:{{{LINE}}}:{kind}"


def soaked(
    server: PrivateRedis, folder: Path, minutes: float, rate: float, seed: int
) -> tuple[Sender, list[Sample], Counter[str]]:
    """Run a worker for so long; returns what it was sent, its memory meanwhile, and whose grew behind the warm-up."""
    client, samples, warm = patient(server.url), list[Sample](), Counter[str]()
    config = write_config(folder, server.url, LINE, folder / "snapshots", learn=200, calibrate=200, every_images=100)
    with running_worker(config) as worker:
        eventually(lambda: client.exists(f"mhpc:{{{LINE}}}:lease"))
        sender, began = Sender(client, rate, seed), time.monotonic()
        while (elapsed := time.monotonic() - began) < minutes * 60:
            sender.send_what_is_due()
            sender.count()
            if elapsed >= SAMPLE_SECONDS * len(samples):
                samples.append(Sample(elapsed / 60, *resident_kib(worker.pid)))
            if not warm and elapsed >= WARM_UP * minutes * 60:
                warm = resident_by_file(worker.pid)
            time.sleep(0.02)
        grown = resident_by_file(worker.pid)
        grown.subtract(warm)
        try:
            eventually(sender.is_done)
        except AssertionError:
            say(f"worker's exit code {worker.poll()}; not answered in time: {sender.outstanding}")
    return sender, samples, grown


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what it is for


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.worker.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=40, help="images a second, at most")
    parser.add_argument("--seed", type=int, default=0, help="which images are malformed, and how")
    parser.add_argument("--csv", type=Path, help="file for the samples: minute, resident and anonymous KiB")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = PrivateRedis(Path(name))
        try:
            sender, samples, grown = soaked(server, Path(name), given.minutes, given.rate, given.seed)
        finally:
            server.kill()
    minutes, kib, anonymous = np.array(samples).T
    if given.csv:
        np.savetxt(given.csv, samples, fmt="%.3f", delimiter=",", header=",".join(Sample._fields), comments="")
    found, of_anonymous = growth(minutes, kib), growth(minutes, anonymous)
    leaks = found.leaks or of_anonymous.leaks
    answers = sender.answers
    say(
        f"sent {sender.sent}, malformed {sender.malformed}: results {answers['scores']}, dead letters {answers['dead']}"
    )
    say(
        f"resident {kib[int(len(kib) * WARM_UP)] / 1024:.0f} MiB after the warm-up, {kib[-1] / 1024:.0f} MiB at the end"
    )
    say(
        f"growth {found.slope:.1f} KiB/min, standard error {found.error:.1f}, 95 % interval {found.told_interval}; of "
        f"anonymous memory {of_anonymous.slope:.1f}, {of_anonymous.error:.1f}, {of_anonymous.told_interval}"
    )
    say(
        "grown and shrunk by KiB: "
        + (", ".join(f"{name} {kib:+d}" for name, kib in grown.most_common() if kib) or "none")
    )
    counts = answers["dead"] == sender.malformed and sender.outstanding == 0
    say(("answered once each" if counts else "COUNTS DIFFER") + (", memory GROWS" if leaks else ", memory steady"))
    return int(leaks or not counts)


if __name__ == "__main__":
    sys.exit(main())
