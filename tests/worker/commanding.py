"""What the tests of commands do: a line that scores, a part of strange looks in review, commands over Redis."""

from collections.abc import Callable
from typing import Any

import msgpack
from torch import Tensor

from tests.worker.helpers import judge, patches
from tests.worker.keepers import ENTRIES, MakeKeeper, add, learn_all, opened
from worker.keeping.keeper import Keeper
from worker.keeping.looking import Look
from worker.line import SCORING
from worker.message import Image
from worker.streams import review
from worker.streams.control import read_commands, send
from worker.streams.line_streams import Commit, LineStreams, ReviewPart

STRANGE = patches(70, 1, shift=3.0)


def features(image: bytes) -> Tensor:
    """What the engine would give for the one picture that review holds here."""
    assert msgpack.unpackb(image)["id"] == "part"
    return STRANGE


def trained(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    add(streams, *ENTRIES)
    keeper = learn_all(opened(make_keeper()))
    assert keeper.line.phase == SCORING
    return keeper


def look(keeper: Keeper, of: Callable[[bytes], Tensor] = features, looks: Look | None = None) -> None:
    (looks or Look(keeper))(read_commands(keeper.streams, keeper.line.commands_through), of)


def told(keeper: Keeper, name: str, **args: Any) -> tuple[bool, str]:
    """Send a command, let the keeper look, and return its answer."""
    send(keeper.streams, name, args, "ann")
    look(keeper)
    return replies(keeper.streams)[-1]


def replies(streams: LineStreams) -> list[tuple[bool, str]]:
    packed = [msgpack.unpackb(fields[b"reply"]) for _, fields in streams.client.xrange(streams.replies)]
    return [(reply["ok"], reply["text"]) for reply in packed]


def in_review(entry: str = "9-9", why: str = "anomalous", learned: str = "") -> ReviewPart:
    image = review.pack_image(Image("part", "png", b"bytes"))
    return ReviewPart(entry, "part", why, "9.0", "4.0", "m", image, learned)


def put_up_for_review(keeper: Keeper, entry: str = "9-9", why: str = "anomalous", learned: str = "") -> None:
    part = in_review(entry, why, learned)
    keeper.streams.commit(keeper.epoch, {"phase": keeper.line.phase}, Commit(review=[part]))


def score(keeper: Keeper) -> float:
    (verdict,) = judge(keeper.line, STRANGE, (4, 4))
    assert verdict.score is not None
    return verdict.score


def version(keeper: Keeper) -> str:
    assert keeper.line.serving.model is not None
    return keeper.line.serving.model


def limit(keeper: Keeper) -> float:
    assert keeper.line.serving.threshold is not None
    return keeper.line.serving.threshold
