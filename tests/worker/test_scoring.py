"""What is scored is watched by the version that its scores are by, while the next one waits to be committed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.commanding import look, replies, told
from tests.worker.helpers import judge, patches
from tests.worker.keepers import ENTRIES, MakeKeeper, add, opened
from worker.errors import SnapshotError
from worker.keeping.keeper import Keeper
from worker.line import CALIBRATING, SCORING
from worker.streams.control import send
from worker.streams.ids import entry_key
from worker.streams.line_streams import Entry, LineStreams

FLAT = torch.tensor([1, 1, 1, 1, 0.01, 0.01])  # so there are fewer components
WINDOW = 256  # images that drift is judged by
RELEARNED = [f"{number}-0" for number in range(101, 112)]


def extract(_line: str, entry: Entry) -> Iterator[Tensor]:
    """Features of four parts: flat ones in ENTRIES, others in those that are relearned from."""
    number = entry_key((entry.batch or b"").decode())[0]
    yield patches(number, 4) * (FLAT if number < 100 else 1)


def learned(keeper: Keeper, entries: list[str]) -> Keeper:
    add(keeper.streams, *entries)
    while keeper.learn(extract, 1):
        if keeper.snapshot_due:
            keeper.snapshot()
    return keeper


def scored(keeper: Keeper, scale: Tensor | float, images: int = WINDOW + 8) -> list[float | None]:
    return [verdict.score for verdict in judge(keeper.line, patches(900, images) * scale, (4, 4))]


def drift(keeper: Keeper) -> tuple[str, float | None]:
    """As people and the metric are told."""
    look(keeper)
    metric = keeper.metrics.registry.get_sample_value("mhpc_drift", {"line": keeper.line.name})
    return keeper.streams.state()["drift"], metric


def refuse(*_: object) -> Any:
    raise SnapshotError("not now")


@pytest.fixture
def relearned(make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """Flat parts were learned, then others, to the end of calibration; the store refuses what came of these."""
    keeper = learned(opened(make_keeper()), ENTRIES)
    assert told(keeper, "relearn", forgetting=1e-9)[0]
    learned(keeper, RELEARNED[:7])
    keeper.snapshot()
    monkeypatch.setattr(keeper.store, "put", refuse)
    learned(keeper, RELEARNED[7:])
    assert (keeper.line.phase, keeper.line.serving.phase) == (SCORING, CALIBRATING)
    return keeper


def test_the_version_before_answers_while_the_store_refuses_what_a_relearn_has_made(
    relearned: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, calibrated = relearned, relearned.line.calibration_means
    before = keeper.line.serving
    assert before.scorer is not None
    assert calibrated.shape[1] != before.scorer.memory.shape[1]  # the Z-spaces have nothing in common
    assert None not in scored(keeper, 1.0)
    assert drift(keeper) == ("", 0.0)
    monkeypatch.undo()
    keeper.snapshot()
    assert str(keeper.line.serving.model) > str(before.model)
    assert None not in scored(keeper, 1.0, WINDOW - 8)
    assert drift(keeper) == ("0", 0.0)  # of nothing that the version before has scored


def test_the_version_before_answers_and_is_watched_while_the_store_refuses_a_rollback(
    relearned: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = relearned
    monkeypatch.undo()
    keeper.snapshot()
    before = keeper.line.serving
    monkeypatch.setattr(keeper.store, "put", refuse)
    send(keeper.streams, "rollback", {}, "ann")
    look(keeper)
    assert None not in scored(keeper, 4.0)
    told_drift, metric = drift(keeper)
    assert metric is not None
    assert metric > 1
    assert told_drift == f"{metric:.4g}"
    monkeypatch.undo()
    keeper.snapshot()
    assert keeper.streams.state()["drift"] == "0"  # of the version that the same commit names
    assert [ok for ok, _ in replies(keeper.streams)] == [True, True]
    assert str(keeper.line.serving.model) > str(before.model)
    assert None not in scored(keeper, FLAT, WINDOW - 8)
    assert drift(keeper) == ("0", 0.0)


def test_a_version_goes_on_being_watched_where_a_later_one_has_the_same_calibration(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = learned(opened(make_keeper()), ENTRIES)
    scored(keeper, FLAT * 4)
    _, before = drift(keeper)
    for command in ("pause", "resume"):
        assert told(keeper, command)[0]
    assert told(keeper, "rate", rate=0.1)[0]
    assert before is not None
    assert before > 1
    assert drift(keeper) == (f"{before:.4g}", before)
