from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.worker.burying import CAP, JPEG, Bury, names, newest, rejected
from tests.worker.burying import bury as bury  # a fixture
from tests.worker.burying import file as file  # a fixture
from tests.worker.calling import Call
from tests.worker.helpers import encoded, item, message, picture
from worker.message import ID_LENGTH, Image, decode_batch
from worker.settings import LimitSettings
from worker.streams.line_streams import LineStreams


def test_a_part_is_taken_from_its_entry_with_all_that_came_with_it(
    call: Call, file: Path, bury: Bury, streams: LineStreams
) -> None:
    raw = item("b", format="raw", data=bytes(30_000), shape=[100, 100, 3], ts=1.5, meta={"camera": 3})
    letter = bury(message(item("a"), raw, item("c")), "b", "failed", "failed 3 times", raw["data"])
    ended = call("dead", "replay", letter, "--config", file)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"{letter}  b is entry {streams.last_id()}, from the entry as it came",
        f"1 dead letter replayed into {streams.images}",
    ]
    assert msgpack.unpackb(newest(streams)) == {"v": 1, "images": [raw]}
    assert names(streams) == []


def test_a_part_whose_entry_is_gone_is_made_of_what_the_letter_holds(
    call: Call, file: Path, bury: Bury, streams: LineStreams
) -> None:
    png = encoded(picture(2, 16, 16))
    for identity, form, data in (("a", "jpeg", JPEG), ("", "png", png)):
        bury(message(item(identity, data=data)), identity, "too_large", "too large", data, gone=True)
        ended = call("dead", "replay", "--all", "--config", file)
        assert (ended.code, ended.err) == (0, "")
        assert f"from the letter's {form}, without ts and meta" in ended.out
        (image,) = decode_batch(newest(streams), LimitSettings())
        assert (image.id, getattr(image, "format", ""), getattr(image, "data", b"")) == (identity, form, data)


@pytest.mark.parametrize("gone", [True, False])
def test_parts_that_came_without_an_id_are_replayed_each_under_one_of_its_own(
    call: Call, file: Path, bury: Bury, streams: LineStreams, gone: bool
) -> None:
    came = [message(item(identity, data=JPEG, meta={"cam": 1})) for identity in (None, "x" * (ID_LENGTH + 1))]
    for batch in came:
        bury(batch, *rejected(batch), gone=gone)
    entries = [fields[b"entry"].decode() for _, fields in streams.client.xrange(streams.dead)]
    ended = call("dead", "replay", "--all", "--config", file)
    assert (ended.code, ended.err) == (0, "")
    sent = [decode_batch(fields[b"batch"], LimitSettings())[0] for _, fields in streams.client.xrange(streams.images)]
    assert [image.id for image in sent][-2:] == [f"{entry}#0" for entry in entries]
    assert [getattr(image, "meta", None) for image in sent][-2:] == [None if gone else {"cam": 1}] * 2
    assert all(f", as '{entry}#0'" in ended.out for entry in entries)


@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("fault", [{"ts": "noon"}, {"meta": 7}, {"meta": {"x": "y" * 2**20}}])
def test_a_part_whose_id_looks_like_a_place_keeps_it(
    call: Call, file: Path, bury: Bury, streams: LineStreams, fault: dict[str, Any], gone: bool
) -> None:
    batch = message(item("#7", data=JPEG, **fault))
    bury(batch, *rejected(batch), gone=gone)
    assert call("dead", "replay", "--all", "--config", file).code == 0
    (image,) = decode_batch(newest(streams), LimitSettings())
    assert image.id == "#7"


def test_a_letter_that_holds_nothing_of_such_a_picture_is_replayed_from_its_entry(
    call: Call, file: Path, bury: Bury, streams: LineStreams
) -> None:
    batch = msgpack.packb({"v": 1, "images": [item("a", format="jpeg", data=JPEG)]}, use_bin_type=False)
    letter = bury(batch, "a", "wrong_shape", "as builds before have put it down", b"")
    assert call("dead", "replay", letter, "--config", file).code == 0
    assert decode_batch(newest(streams), LimitSettings()) == [Image("a", "jpeg", JPEG)]


@pytest.mark.parametrize("gone", [True, False])
def test_a_picture_that_came_as_a_text_is_shown_and_replayed_as_bytes(
    call: Call, file: Path, bury: Bury, streams: LineStreams, tmp_path: Path, gone: bool
) -> None:
    came = {"v": 1, "images": [item("a", format="jpeg", data=JPEG, meta={"cam": 1})]}
    batch = msgpack.packb(came, use_bin_type=False)  # the classic mistake
    letter = bury(batch, *rejected(batch), gone=gone)
    shown = call("dead", "show", letter, "--config", file, "--payload", tmp_path / "part.jpg")
    assert "from the letter's jpeg" in shown.out if gone else "as it came, its data as bytes" in shown.out
    assert (tmp_path / "part.jpg").read_bytes() == JPEG
    assert call("dead", "replay", letter, "--config", file).code == 0
    assert decode_batch(newest(streams), LimitSettings()) == [
        Image("a", "jpeg", JPEG, meta=None if gone else {"cam": 1})
    ]


def test_an_entry_is_replayed_as_it_is(call: Call, file: Path, bury: Bury, streams: LineStreams) -> None:
    whole = message(*[item(str(n)) for n in range(3)])
    assert len(whole) > CAP
    for batch, reason, gone in (
        (b"\xc1 junk", "not_msgpack", True),
        (b"\xc1 junk", "not_msgpack", False),
        (JPEG, "not_msgpack", True),  # a picture where the map should be
        (b"\x80", "wrong_shape", True),
        (whole, "too_many_images", False),
    ):
        bury(batch, "", reason, "no", batch, gone=gone)
        assert call("dead", "replay", "--all", "--config", file).code == 0
        assert newest(streams) == batch
    assert names(streams) == []


@pytest.mark.parametrize(
    ("batch", "fields", "part"),
    [
        (b"", ("a", "truncated", "cut off", JPEG + bytes(CAP)), f"holds {CAP} bytes, cut at streams.payload_bytes"),
        (b"", ("a", "wrong_shape", "raw 2 x 2", bytes(11)), "neither JPEG nor PNG, and no shape"),
        (b"", ("", "truncated", "cut off", bytes(11)), "neither JPEG nor PNG, and no shape"),
        (b"", ("", "lost", "trimmed", b""), "holds no bytes"),
        (b"", ("", "too_large", "too large", bytes(2 * CAP)), "cut at streams.payload_bytes"),
        (message(item("a", data=JPEG), item("a", data=JPEG, ts=1.0)), ("a", "failed", "no", JPEG), "1 more images 'a'"),
    ],
    ids=["cut", "raw", "raw without an id", "lost", "entry cut", "two of one id"],
)
def test_what_cannot_be_replayed_says_why_and_stays_and_the_others_are_replayed(
    call: Call, file: Path, bury: Bury, streams: LineStreams, batch: bytes, fields: tuple[Any, ...], part: str
) -> None:
    first = bury(b"junk", "", "not_msgpack", "no", b"junk")
    stays = bury(batch, *fields, gone=not batch)
    last = bury(b"junk", "", "not_msgpack", "no", b"junk")
    before = streams.client.xlen(streams.images)
    ended = call("dead", "replay", first, stays, last, stays, "--config", file)
    assert ended.code == 1
    assert "1 dead letter of line" in ended.error
    told = ended.out.splitlines()
    assert [text.split()[0] for text in told] == [first, stays, last]
    assert part in told[1]
    assert "send" in told[1]
    assert "from its source" in told[1]
    assert names(streams) == [stays]
    assert streams.client.xlen(streams.images) == before + 2


def test_an_entry_of_the_same_id_with_another_content_is_not_replayed(
    call: Call, file: Path, streams: LineStreams
) -> None:
    """Redis was wiped of the images, and the producer names its entries itself."""
    streams.client.xadd(streams.images, {"batch": message(item("a", data=JPEG))}, id="7-0")
    for identity, payload in (("a", b"raw bytes"), ("", b"")):
        fields: Any = {"entry": "7-0", "id": identity, "reason": "failed", "payload": payload}
        streams.client.xadd(streams.dead, fields)
    ended = call("dead", "replay", "--all", "--config", file)
    assert ended.code == 1
    assert ended.out.count("another content") == 2
    assert streams.client.xlen(streams.images) == 1


def test_letters_that_somebody_else_has_written_do_no_harm(call: Call, file: Path, streams: LineStreams) -> None:
    foreign: list[Any] = [{"x": b"\xff"}, {"entry": b"\xff", "deliveries": b"-", "payload": b""}, {"entry": b"9" * 30}]
    for fields in foreign:
        streams.client.xadd(streams.dead, fields)
    for arguments in (["list"], ["list", "--json"], ["show", names(streams)[1]]):
        assert call("dead", *arguments, "--config", file).code == 0
    ended = call("dead", "replay", "--all", "--config", file)
    assert (ended.code, ended.out.count("not replayed")) == (1, 3)


@pytest.mark.parametrize(("command", "told"), [("replay", "20 dead letters replayed"), ("purge", "20 dead letters of")])
def test_of_all_letters_those_of_one_reason_are_taken(
    call: Call, file: Path, bury: Bury, streams: LineStreams, command: str, told: str
) -> None:
    stays = bury(b"junk", "", "wrong_version", "no", b"junk")
    for _ in range(20):  # more than are read at once
        bury(b"junk", "", "not_msgpack", "no", b"junk")
    yes = ["--yes"] if command == "purge" else []
    ended = call("dead", command, "--all", "--reason", "not_msgpack", *yes, "--config", file)
    assert (ended.code, told in ended.out) == (0, True)
    assert names(streams) == [stays]
