"""What a person says of a part: normal, anomalous, released, dropped."""

import re
from typing import Any

import msgpack
import pytest
import torch

from mhpc.core.memory_bank import MemoryBank
from mhpc.core.recent import Recent
from tests.worker.commanding import (
    STRANGE,
    in_review,
    limit,
    look,
    put_up_for_review,
    replies,
    score,
    told,
    trained,
    version,
)
from tests.worker.helpers import patches
from tests.worker.keepers import MakeKeeper, add, assert_same, extract, learn_all, opened
from tests.worker.test_line import fresh, play
from worker.keeping.commands import Means, execute
from worker.keeping.keeper import Keeper
from worker.line import Line
from worker.message import Image
from worker.records import Source
from worker.streams import review
from worker.streams.control import Command, send
from worker.streams.line_streams import LineStreams


def test_a_part_that_is_called_normal_scores_below_the_threshold_from_then_on(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    model = version(keeper)
    assert score(keeper) > limit(keeper)
    put_up_for_review(keeper)
    ok, text = told(keeper, "normal", entry="9-9", id="part")
    assert ok, text
    assert "anchors pinned" in text
    assert score(keeper) < limit(keeper)
    assert version(keeper) > model
    keeper.close()
    again = opened(make_keeper(), "station-2#b")
    assert score(again) < limit(again)
    assert_same(again.line, keeper.line)


@pytest.mark.parametrize("command", ["normal", "anomalous", "drop", "release"])
def test_a_part_that_review_does_not_hold_is_refused_with_what_may_be_the_reason(
    make_keeper: MakeKeeper, streams: LineStreams, command: str
) -> None:
    keeper = trained(make_keeper, streams)
    ok, text = told(keeper, command, entry="1-0", id="part")
    assert not ok
    assert text == (
        "review does not hold part 'part' of entry 1-0: it was neither flagged nor set aside, or is too old; "
        "mhpc-worker review list shows what it holds"
    )


def test_a_part_that_review_holds_without_its_picture_is_refused_as_that(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    streams.client.xadd(streams.review, in_review()._replace(image=b"")._asdict())
    assert told(keeper, "normal", entry="9-9", id="part") == (
        False,
        "review holds part 'part' of entry 9-9 without its picture, which was gone by then or larger than "
        "streams.review_bytes: drop takes it out",
    )


def test_what_an_anomalous_part_alone_has_brought_is_removed(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    told(keeper, "normal", entry="9-9", id="part")
    ok, text = told(keeper, "anomalous", entry="9-9", id="part")
    assert ok
    assert "anchors removed that stood for it alone" in text
    assert score(keeper) > limit(keeper)
    assert told(keeper, "anomalous", entry="9-9", id="part")[1].startswith("nothing removed: no anchor stands for it")


def test_an_anomalous_part_that_was_set_aside_takes_nothing_along_that_others_taught(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper, why="quarantined")
    anchors = keeper.line.learner.memory_.clone()
    like_another = next(extract("", streams.entry("3-0")))[:1]
    send(streams, "anomalous", {"entry": "9-9", "id": "part"}, "ann")
    look(keeper, lambda _: like_another)
    assert replies(streams) == [(True, "removed from review")]
    assert torch.equal(keeper.line.learner.memory_, anchors)
    assert review.find(streams, "9-9", "part") == []


def test_a_part_that_was_set_aside_and_called_normal_can_be_called_anomalous_again(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper, why="quarantined")
    told(keeper, "normal", entry="9-9", id="part")
    assert score(keeper) < limit(keeper)
    assert "anchors removed that stood for it alone" in told(keeper, "anomalous", entry="9-9", id="part")[1]
    assert score(keeper) > limit(keeper)
    assert review.find(streams, "9-9", "part") == []
    assert keeper.line.called_normal == []


def test_a_part_that_was_set_aside_takes_nothing_along_of_another_that_was_called_normal(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper, why="quarantined")
    told(keeper, "normal", entry="9-9", id="part")
    anchors = keeper.line.learner.memory_.clone()
    alike = review.find(streams, "9-9", "part")[0][1]._replace(id="alike")
    streams.client.xadd(streams.review, alike._asdict())
    assert told(keeper, "anomalous", entry="9-9", id="alike") == (True, "removed from review")
    assert torch.equal(keeper.line.learner.memory_, anchors)
    assert keeper.line.called_normal == [("9-9", "part")]


def test_a_dropped_part_is_no_longer_up_for_review(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    assert told(keeper, "drop", entry="9-9", id="part") == (True, "removed from review")
    assert review.find(streams, "9-9", "part") == []


def test_a_quarantined_part_is_kept_with_its_bytes_and_can_be_released(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = opened(make_keeper())
    entry = streams.entry(streams.client.xadd(streams.images, {"batch": "1-0"}).decode())
    keeper.owed.set_aside(entry, [1, 7], lambda _: [Image("a", "png", b""), Image("part", "png", b"bytes")])
    add(streams, "99999999999999-0")
    learn_all(keeper)
    keeper.snapshot()
    ((_, part),) = review.find(streams, entry.id, "part")
    assert (part.why, msgpack.unpackb(part.image)["data"]) == ("quarantined", b"bytes")
    assert review.find(streams, entry.id, "#7")[0][1].image == b""  # its place is known, its bytes are not
    before = keeper.line.learner.images_learned_
    assert told(keeper, "release", entry=entry.id, id="part") == (True, "learned after all")
    assert keeper.line.learner.images_learned_ == before + 1
    assert review.find(streams, entry.id, "part") == []


def test_a_part_that_was_set_aside_when_learning_ended_was_learned_and_is_unlearned(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    keeper.line.learner.partial_fit(STRANGE, guard=False)
    put_up_for_review(keeper, why="quarantined", learned="1")
    low = float(keeper.line.learner.score(STRANGE))
    ok, text = told(keeper, "anomalous", entry="9-9", id="part")
    assert ok
    assert "anchors removed that stood for it alone" in text
    assert text.endswith("; it is removed from review")
    assert review.find(streams, "9-9", "part") == []
    assert float(keeper.line.learner.score(STRANGE)) > low
    put_up_for_review(keeper, why="quarantined", learned="1")
    text = told(keeper, "anomalous", entry="9-9", id="part")[1]
    assert text.startswith("nothing removed: no anchor stands for it")
    assert text.endswith("; it is removed from review")


def test_a_part_that_is_released_counts_once_and_takes_no_number_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    line, strange = play(fresh(learn=160), 1, 35), patches(51, shift=100)
    line.apply("50-0", [patches(50), strange, patches(52)])
    assert (line.counts, line.progress) == ((142, 1, 0), (143, 160))
    held = [in_review("50-0", why="quarantined")]
    means = Means(lambda *_: strange, lambda *_: None, lambda *_: held, lambda _: never(), never, "")
    command = Command("1-0", "release", {"entry": "50-0", "id": "part"}, "ann")
    assert execute(line, command, means) == "learned after all"
    assert (line.counts, line.progress) == ((143, 0, 0), (143, 160))
    monkeypatch.setattr(Recent, "admit", lambda _, scores, *__: torch.ones(len(scores), dtype=torch.bool))
    line.apply("51-0", [patches(53, 4, shift=50)])
    assert line.sources[-1] == Source("51-0", 143)
    bank = line.learner.bank_
    assert isinstance(bank, MemoryBank)
    assert set(bank.picture[bank.picture >= 142].tolist()) == {142, 143, 144, 145, 146}


def never() -> Any:
    raise AssertionError("asked for nothing")


@pytest.mark.parametrize(("why", "learned"), [("anomalous", ""), ("quarantined", "1")])
def test_releasing_what_was_learned_already_does_not_learn_it_again(
    make_keeper: MakeKeeper, streams: LineStreams, why: str, learned: str
) -> None:
    keeper = relearning(make_keeper, streams)
    put_up_for_review(keeper, why=why, learned=learned)
    before = keeper.line.learner.images_learned_
    ok, text = told(keeper, "release", entry="9-9", id="part")
    assert ok
    assert "anchors pinned" in text
    assert keeper.line.learner.images_learned_ == before
    assert keeper.line.sources == []


def relearning(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    keeper = trained(make_keeper, streams)
    assert told(keeper, "relearn")[0]
    return keeper


def test_a_part_that_is_released_before_it_came_to_review_does_not_come_there(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = relearning(make_keeper, streams)
    put_up_for_review(keeper)  # the version that answers has flagged it
    keeper.owed.review = [in_review(why="quarantined"), in_review("8-8", why="quarantined")]
    before, flagged_by = keeper.line.learner.images_learned_, keeper.line.serving.scorer
    ok, text = told(keeper, "release", entry="9-9", id="part")
    assert ok
    assert re.match(r"learned after all, \d+ in the version that answers; its score there was", text)
    assert keeper.line.serving.scorer is not flagged_by  # by which it, and its like, would be flagged on
    assert keeper.line.learner.images_learned_ == before + 1
    assert review.find(streams, "9-9", "part") == []
    assert len(review.find(streams, "8-8", "part")) == 1
    assert told(keeper, "release", entry="9-9", id="part")[0] is False  # once


@pytest.mark.parametrize("command", ["drop", "anomalous"])
def test_a_part_that_is_dropped_before_it_came_to_review_does_not_come_there(
    make_keeper: MakeKeeper, streams: LineStreams, command: str
) -> None:
    keeper = trained(make_keeper, streams)
    keeper.owed.review = [in_review(why="quarantined"), in_review("8-8", why="quarantined")]
    assert told(keeper, command, entry="9-9", id="part") == (True, "removed from review")
    assert review.find(streams, "9-9", "part") == []
    assert len(review.find(streams, "8-8", "part")) == 1


def test_while_relearning_the_scores_that_are_told_are_of_the_version_that_answers(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = relearning(make_keeper, streams)
    keeper.line.learner.partial_fit(STRANGE + 0.01, guard=False)  # the next one knows its like
    put_up_for_review(keeper)
    before = score(keeper)
    assert float(keeper.line.learner.score(STRANGE)) < before
    ok, text = told(keeper, "normal", entry="9-9", id="part")
    assert ok
    after = score(keeper)
    assert after < before
    assert text.endswith(f"in the version that answers; its score there was {before:.4g} and is {after:.4g}")


def test_while_relearning_the_version_that_answers_keeps_what_is_called_anomalous_and_it_is_said(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = relearning(make_keeper, streams)
    put_up_for_review(keeper)
    told(keeper, "normal", entry="9-9", id="part")
    before = score(keeper)
    ok, text = told(keeper, "anomalous", entry="9-9", id="part")
    assert ok
    assert "anchors removed that stood for it alone" in text
    assert text.endswith("the version that answers keeps its anchors until the next one is calibrated")
    assert score(keeper) == before


def test_a_larger_bank_takes_more_parts_that_are_called_normal_at_once(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    pinned = keeper.line.learner.bank_.pinned  # type: ignore[union-attr]  # a MemoryBank by now
    pinned[: len(pinned) // 2] = True
    keeper.snapshot()
    assert "at most 30 may be of a bank of 60" in told(keeper, "normal", entry="9-9", id="part")[1]
    keeper.close()
    larger = make_keeper()
    make_line = larger.make_line

    def of_90() -> Line:
        line = make_line()
        config = line.config.model_copy(update={"bank_size": 90})
        return Line(config, 0.99, line.device)

    larger.make_line, larger.line = of_90, of_90()
    assert "anchors pinned" in told(opened(larger, "station-1#b"), "normal", entry="9-9", id="part")[1]
