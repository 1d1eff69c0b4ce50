"""Review holds a bounded number of parts, and of their pictures' bytes, whoever puts them up."""

import pytest

from tests.worker.streams.acting import add, deliver
from worker.streams import review
from worker.streams.line_streams import Answer, Commit, LineStreams, ReviewCaps, ReviewPart


def part(number: int, size: int) -> ReviewPart:
    return ReviewPart(f"{number}-0", "a", "anomalous", "", "", "m", bytes([number]) * size)


def kept(streams: LineStreams) -> list[tuple[str, int]]:
    entries = streams.client.xrange(streams.review)
    return [(fields[b"entry"].decode(), len(fields[b"image"])) for _, fields in entries]


@pytest.mark.parametrize("way", ["gate", "commit"])
def test_the_oldest_go_where_the_pictures_take_too_many_bytes(streams: LineStreams, epoch: int, way: str) -> None:
    caps = ReviewCaps(500, 1000)
    for number, size in enumerate((600, 300, 100, 0, 50, 1001, 940), start=1):
        if way == "commit":
            streams.commit(epoch, {"phase": "scoring"}, Commit(review=[part(number, size)]), caps)
        else:
            add(streams, f"{number}-0")
            deliver(streams)
            streams.publish([Answer(f"{number}-0", [], [], [part(number, size)])], 10, 10, caps)
        assert sum(size for _, size in kept(streams)) <= 1000
        assert kept(streams)[-1] == (f"{number}-0", size if size <= 1000 else 0)  # what fits in no way has no bytes
    assert kept(streams) == [("4-0", 0), ("5-0", 50), ("6-0", 0), ("7-0", 940)]


def test_a_part_that_was_dropped_from_between_never_lets_too_much_in(streams: LineStreams, epoch: int) -> None:
    caps = ReviewCaps(500, 1000)
    for number in (1, 2, 3):
        streams.commit(epoch, {"phase": "x"}, Commit(review=[part(number, 300)]), caps)
    ((key, _),) = review.find(streams, "2-0", "a")
    streams.commit(epoch, {"phase": "x"}, Commit(dropped=[key]), caps)
    for number in (4, 5, 6, 7):
        streams.commit(epoch, {"phase": "x"}, Commit(review=[part(number, 300)]), caps)
        assert sum(size for _, size in kept(streams)) <= 1000
    assert kept(streams) == [("5-0", 300), ("6-0", 300), ("7-0", 300)]


def test_what_somebody_else_has_put_there_is_no_obstacle(streams: LineStreams, epoch: int) -> None:
    streams.client.xadd(streams.review, {"anything": b"else"})
    streams.commit(epoch, {"phase": "x"}, Commit(review=[part(1, 10)]))
    assert [found.image for _, found in review.find(streams, "1-0", "a")] == [bytes([1]) * 10]


def test_a_part_is_found_however_many_lie_before_it(streams: LineStreams, epoch: int) -> None:
    for number in range(1, 31):
        streams.commit(epoch, {"phase": "x"}, Commit(review=[part(number, 5)]))
    assert [found.entry for _, found in review.find(streams, "1-0", "a")] == ["1-0"]
    assert review.find(streams, "99-0", "a") == []
