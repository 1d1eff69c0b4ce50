"""`mhpc-worker demo --serve`: the live page, and parts that go on coming."""

import itertools
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from worker.demo.parts import Part
from worker.demo.play import LINE, Player, Result, images_of, progress_bars
from worker.demo.processes import Child, free_port, started_console, wait_until_ready
from worker.message import Image
from worker.runtime.environment import user_name
from worker.settings import ConsoleSettings

SERVE_RATE = 5.0  # images per second where no rate is asked for
GOOD_BETWEEN = 9  # good parts from one that is not to the next: a line on a bad day


class Page(NamedTuple):
    """Where the live page is, and who may press its buttons."""

    port: int
    user: str
    token: str

    @classmethod
    def of_this_run(cls) -> "Page":
        """On the page's usual port, if that is free."""
        user = re.sub(r"[^\w.@-]", "-", user_name())[:64]
        return cls(_free(ConsoleSettings().port) or free_port(), user, secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/lines/{LINE}?token={self.token}"


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return 0 if probe.connect_ex(("127.0.0.1", port)) == 0 else port


@contextmanager
def opened(page: Page | None, config: Path, console: Console) -> Iterator[Child | None]:
    """The live page's process, if one is wanted; its address is printed once it answers."""
    if page is None:
        yield None
        return
    with started_console(config, config.with_name("console.log")) as child:
        wait_until_ready(child, page.port)
        console.print(f"Live page: {page.url}", markup=False, highlight=False, soft_wrap=True)
        yield child


def serve(player: Player, parts: Sequence[Part], page: Page, served: Child, console: Console) -> None:
    """Let the test parts come again and again, with the same ids, in another order each time, until interrupted."""
    told = "Parts go on coming. Open one that was flagged, say that it is normal, and see it pass when it comes again."
    console.print(f"{told}\nLive page: {page.url}\nCtrl-C ends it", markup=False, highlight=False, soft_wrap=True)
    player.producer.rate = player.producer.rate or SERVE_RATE
    chosen = mostly_good(parts)

    def endless() -> Iterator[Image]:
        for round_ in itertools.count():
            order = np.random.default_rng(round_).permutation(len(chosen))
            yield from images_of(chosen[place] for place in order)

    with progress_bars(console) as bars:
        scored = bars.add_task("Scored", total=None)
        anomalous = bars.add_task("Anomalous", total=None)

        def seen(new: list[Result]) -> None:
            served.check()
            bars.advance(scored, len(new))
            bars.advance(anomalous, sum(bool(result["anomalous"]) for result in new))
            player.watch.results.clear()

        try:
            player.play(endless(), done=lambda: False, seen=seen)
        except KeyboardInterrupt:
            console.print("Interrupted: ending the page, the worker and Redis")


def mostly_good(parts: Sequence[Part]) -> list[Part]:
    """The good parts, and after each GOOD_BETWEEN of them a defective one; all, where nobody knows which are good."""
    good = [part for part in parts if part.defective is False]
    bad = iter([part for part in parts if part.defective])
    if not good:
        return list(parts)
    chosen = []
    for place, part in enumerate(good, start=1):
        chosen.append(part)
        if place % GOOD_BETWEEN == 0 or place == len(good):
            chosen += [defective] if (defective := next(bad, None)) else []
    return chosen
