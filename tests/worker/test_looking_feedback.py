"""What a person says of a part: normal, anomalous, released, dropped."""

import msgpack
import torch

from tests.worker.commanding import limit, look, put_up_for_review, replies, score, told, trained, version
from tests.worker.keeping import MakeKeeper, add, assert_same, extract, learn_all, opened
from worker.message import Image
from worker.streams import review
from worker.streams.control import send
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
    keeper.close("station-1#a")
    again = opened(make_keeper(), "station-2#b")
    assert score(again) < limit(again)
    assert_same(again.line, keeper.line)


def test_a_part_whose_bytes_are_gone_is_too_old(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    ok, text = told(keeper, "normal", entry="1-0", id="part")
    assert not ok
    assert text.startswith("too old: review does not hold part 'part' of entry 1-0")
    assert told(keeper, "drop", entry="1-0", id="part")[0] is False


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
