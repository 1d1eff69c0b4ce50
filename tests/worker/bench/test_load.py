import itertools
import time
from typing import Any

import pytest

from worker.bench.load import FlatOut, Flow, Paced
from worker.streams.line_streams import LineStreams

ENTRIES = [b"one", b"two", b"three"]


@pytest.fixture
def lines(line: str) -> tuple[str, str]:
    return f"{line}-a", f"{line}-b"


def lengths(client: Any, lines: tuple[str, ...]) -> list[int]:
    return [client.xlen(f"mhpc:{{{line}}}:images") for line in lines]


def answer(client: Any, line: str, count: int, group: str = "mhpc", done: bool = True) -> None:
    key = f"mhpc:{{{line}}}:images"
    replies = client.xreadgroup(group, "worker", {key: ">"}, count=count)
    entries = replies[key.encode()][0] if isinstance(replies, dict) else replies[0][1]
    if done:
        client.xack(key, group, *(entry for entry, _ in entries))


def flat_out(client: Any, lines: tuple[str, ...], **flow: Any) -> FlatOut:
    for line in lines:
        LineStreams(client, line).ensure_groups()
    return FlatOut(client, Flow(lines, ahead=4, **flow), itertools.cycle(ENTRIES))


def test_flat_out_fills_each_line_up_to_so_many_entries_and_no_further(client: Any, lines: tuple[str, str]) -> None:
    sender = flat_out(client, lines)
    assert sender.turn() > 0
    sender.turn()
    assert lengths(client, lines) == [4, 4]


def test_what_was_answered_makes_room_and_what_is_being_worked_on_does_not(client: Any, lines: tuple[str, str]) -> None:
    sender = flat_out(client, lines)
    sender.turn()
    answer(client, lines[0], 3)
    answer(client, lines[1], 3, done=False)
    sender.turn()
    assert lengths(client, lines) == [7, 4]


def test_a_flow_that_is_learned_from_waits_for_learning_too(client: Any, lines: tuple[str, str]) -> None:
    sender = flat_out(client, lines, learns=True)
    sender.turn()
    answer(client, lines[0], 4)
    answer(client, lines[1], 4)
    answer(client, lines[1], 2, group="mhpc-learn")
    sender.turn()
    assert lengths(client, lines) == [4, 6]


def test_a_paced_flow_keeps_its_times_whatever_the_worker_does(client: Any, lines: tuple[str, str]) -> None:
    sender = Paced(client, Flow(lines[:1], per_entry=1, rate=20.0), itertools.cycle(ENTRIES))
    before = time.monotonic()
    pause = sender.turn()
    begun = time.monotonic()  # it began in between
    while time.monotonic() - begun < 0.5:
        time.sleep(pause)
        pause = sender.turn()
    asked = time.monotonic()
    wait = sender.turn()
    assert 0 < wait <= 1 / 20
    assert (asked - begun) * 20 < lengths(client, lines)[0] <= (time.monotonic() - before) * 20 + 1
