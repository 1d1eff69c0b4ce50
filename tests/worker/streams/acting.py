"""What the tests of a line's streams do with them."""

from worker.streams.line_streams import Answer, DeadLetter, LineStreams, ReviewCaps
from worker.streams.reads import read_new

HOLDER = "station-1#aa"


def add(streams: LineStreams, *entries: str) -> list[str]:
    for entry in entries:
        streams.client.xadd(streams.images, {"batch": f"of {entry}"}, id=entry)
    return list(entries)


def deliver(streams: LineStreams, consumer: str = "station-1", count: int = 100) -> list[str]:
    entries = read_new(streams.client, {streams: count}, consumer)[streams.line]
    assert not isinstance(entries, Exception), entries
    return [entry.id for entry in entries]


def answer(entry: str, *results: bytes, dead: list[DeadLetter] | None = None) -> Answer:
    return Answer(entry, list(results), dead or [])


def publish(streams: LineStreams, *answers: Answer) -> list[bool]:
    return streams.publish(answers, scores_max=1000, dead_max=1000, review=ReviewCaps(100))


def results(streams: LineStreams) -> list[bytes]:
    return [fields[b"result"] for _, fields in streams.client.xrange(streams.scores)]


def letters(streams: LineStreams) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in streams.client.xrange(streams.dead)]


def pending(streams: LineStreams, group: str) -> list[str]:
    return [
        item["message_id"].decode() for item in streams.client.xpending_range(streams.images, group, "-", "+", 1000)
    ]


def kept(streams: LineStreams) -> list[str]:
    return [entry.decode() for entry, _ in streams.client.xrange(streams.images)]
