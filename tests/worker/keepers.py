"""What the tests of the keeper do with it: parts whose features follow from the entry, so that runs can be compared."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.worker.helpers import patches
from worker.keeping.keeper import Keeper
from worker.line import Line
from worker.streams.ids import entry_key
from worker.streams.line_streams import LEARNING as LEARNING_GROUP
from worker.streams.line_streams import REVIEW_CAPS, Answer, Entry, LineStreams
from worker.streams.reads import read_new

HOLDER = "station-1#a"
ENTRIES = [f"{number}-0" for number in range(1, 14)]  # of 4 images: 6 are learned, 5 calibrate, 2 are too many

MakeKeeper = Callable[..., Keeper]


def add(streams: LineStreams, *entries: str) -> None:
    for entry in entries:
        streams.client.xadd(streams.images, {"batch": entry}, id=entry)


def extract(_line: str, entry: Entry) -> Iterator[Tensor]:
    """Features of four parts that follow from what the entry holds."""
    if entry.batch is not None:
        yield patches(entry_key(entry.batch.decode())[0], 4)


def opened(keeper: Keeper, holder: str = HOLDER) -> Keeper:
    keeper.acquire(holder, take_over=holder.partition("#")[0])
    assert keeper.epoch
    return keeper


def learn_all(keeper: Keeper, count: int = 1) -> Keeper:
    """Learn what there is, a few entries a turn, with a snapshot wherever one is due."""
    while keeper.learn(extract, count):
        if keeper.snapshot_due:
            keeper.snapshot()
    return keeper


def pending(streams: LineStreams, group: str = LEARNING_GROUP) -> list[str]:
    return [item["message_id"].decode() for item in streams.client.xpending_range(streams.images, group, "-", "+", 100)]


def assert_same(a: Line, b: Line) -> None:
    """Of equal content; which results each has followed so far is another matter."""
    (tensors, metadata), (others, other_metadata) = a.state(), b.state()
    own = {"line": "", "scores_through": "", "scores_since": ""}
    assert {**metadata, **own} == {**other_metadata, **own}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def file_of(keeper: Keeper, stem: str, suffix: str = ".safetensors") -> Path:
    """Of a version, where it is on disk."""
    return Path(keeper.store.place) / f"{stem}{suffix}"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def answer_all(streams: LineStreams) -> None:
    streams.publish([Answer(entry.id, [], []) for entry in take(streams, 100)], 10, 10, REVIEW_CAPS)


def take(streams: LineStreams, count: int) -> list[Entry]:
    """What answering is given, and may not answer."""
    entries = read_new(streams.client, {streams: count}, "station-1")[streams.line]
    assert isinstance(entries, list)
    return entries
