import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from tests.worker.calling import Call
from tests.worker.helpers import encoded, item, message, picture
from tests.worker.streams.acting import answer, deliver, publish
from worker.message import ID_LENGTH, OBJECTS, Rejected, decode_batch
from worker.settings import LimitSettings
from worker.streams.line_streams import DeadLetter, LineStreams

CAP = 4000  # below it a small JPEG is whole
JPEG = encoded(picture(1, 16, 16), "JPEG")
Bury = Callable[..., str]


@pytest.fixture
def bury(streams: LineStreams) -> Bury:
    """Add an entry and let the gate put it, or one image of it, among the dead; returns the letter's name."""

    def bury(batch: bytes, *fields: Any, gone: bool = False) -> str:
        entry = streams.client.xadd(streams.images, {"batch": batch}).decode()
        deliver(streams)
        identity, reason, error, payload = fields
        publish(streams, answer(entry, dead=[DeadLetter(identity, reason, error, payload[:CAP])]))
        if gone:
            streams.client.xdel(streams.images, entry)
        name: bytes = streams.client.xrevrange(streams.dead, count=1)[0][0]
        return name.decode()

    return bury


@pytest.fixture
def file(config: Callable[..., Path]) -> Path:
    return config(top=f"[streams]\npayload_bytes = {CAP}")


def names(streams: LineStreams) -> list[str]:
    return [name.decode() for name, _ in streams.client.xrange(streams.dead)]


def rejected(batch: bytes) -> tuple[str, str, str, bytes]:
    """What a worker says of the one image of an entry, as a letter's fields."""
    (image,) = decode_batch(batch, LimitSettings())
    assert isinstance(image, Rejected)
    return image.id, image.reason, image.error, image.payload


def newest(streams: LineStreams) -> bytes:
    batch: bytes = streams.client.xrevrange(streams.images, count=1)[0][1][b"batch"]
    return batch


# -- list and show -----------------------------------------------------------------------------------------------------


def test_list_shows_the_newest_letters_last(call: Call, file: Path, bury: Bury, line: str) -> None:
    letters = [bury(message(item(f"{n}")), f"{n}", "truncated", "cut off", b"x") for n in range(20)]
    ended = call("dead", "list", "--config", file, "--json")
    assert (ended.code, ended.err) == (0, "")
    rows = [json.loads(text) for text in ended.out.splitlines()]
    assert [row["letter"] for row in rows] == letters
    assert (rows[3]["id"], rows[3]["reason"], rows[3]["error"]) == ("3", "truncated", "cut off")
    assert (rows[3]["deliveries"], rows[3]["payload_bytes"]) == (1, 1)
    text = call("dead", "list", "--config", file, "-n", "2").out.splitlines()
    assert [row.split()[0] for row in text[1:3]] == letters[-2:]
    assert text[3] == "the newest 2 of 20; --count 0 shows all"


def test_list_fits_into_80_columns_and_shortens_the_error_alone(
    call: Call, file: Path, bury: Bury, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    letter = bury(b"junk", "", "too_many_images", "257 images in one entry, at most 256 are accepted", b"junk")
    bury(message(item()), "camera-1/2026-03-04/000123", "not_an_image", "[red]no\x1b[2J", b"x")
    head, *rows = call("dead", "list", "--config", file).out.splitlines()
    assert head.split() == ["letter", "when", "reason", "dlv.", "image", "error"]
    assert max(map(len, [head, *rows])) <= 80
    assert rows[0].startswith(letter)
    assert [cell for cell in ("too_many_images", "(entry)", "257 images") if cell not in rows[0]] == []
    column, end = head.index("image"), head.index("error")
    assert "".join(row[column:end].strip() for row in rows[1:]) == "camera-1/2026-03-04/000123"
    assert "\x1b" not in "".join(rows)
    assert "[red]no" in rows[1]


def test_list_can_be_told_a_reason_and_refuses_one_that_there_is_not(call: Call, file: Path, bury: Bury) -> None:
    bury(b"junk", "", "not_msgpack", "no", b"junk")
    wanted = bury(message(item()), "a", "truncated", "cut off", b"x")
    bury(b"junk", "", "not_msgpack", "no", b"junk")
    ended = call("dead", "list", "--config", file, "--reason", "truncated", "--json")
    assert [json.loads(text)["letter"] for text in ended.out.splitlines()] == [wanted]
    ended = call("dead", "list", "--config", file, "--reason", "sad")
    assert ended.code == 2
    assert "--reason 'sad' is unknown; expected one of no_batch_field" in ended.error


def test_a_line_without_letters_says_so_and_as_json_nothing(call: Call, file: Path, line: str) -> None:
    assert call("dead", "list", "--config", file) == (0, f"line {line} has no dead letters\n", "")
    assert call("dead", "list", "--config", file, "--json") == (0, "", "")
    assert call("dead", "replay", "--all", "--config", file).out.startswith("0 dead letters replayed")
    assert call("dead", "purge", "--all", "--config", file).out.startswith("0 dead letters")


def test_show_tells_all_fields_and_writes_the_payload(call: Call, file: Path, bury: Bury, tmp_path: Path) -> None:
    letter = bury(message(item("part\x1b7")), "part\x1b7", "truncated", "cut\noff", JPEG, gone=True)
    ended = call("dead", "show", letter, "--config", file, "--payload", tmp_path / "part.jpg")
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "part.jpg").read_bytes() == JPEG
    told = dict(text.split(maxsplit=1) for text in ended.out.splitlines())
    assert (told["letter"], told["id"], told["error"]) == (letter, r"'part\x1b7'", "cut off")
    assert (told["payload_bytes"], told["cut"]) == (str(len(JPEG)), "False")
    assert told["replay"] == "from the letter's jpeg, without ts and meta"
    row = json.loads(call("dead", "show", letter, "--config", file, "--json").out)
    assert (row["id"], row["error"]) == ("part\x1b7", "cut\noff")
    ended = call("dead", "show", letter, "--config", file, "--payload", tmp_path / "absent" / "part.jpg")
    assert ended.code == 2
    assert "part.jpg: not written" in ended.error


def test_a_value_bomb_is_not_unpacked_to_be_sent_again(
    call: Call, file: Path, bury: Bury, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = message(item("a"), images=[{}] * (OBJECTS + 1))
    letter = bury(bomb, "", "too_large", "more than 500000 values", bomb)
    monkeypatch.setattr(msgpack, "unpackb", None)
    assert "from the letter" not in call("dead", "replay", letter, "--config", file).out
    assert newest(streams) == bomb


@pytest.mark.parametrize("command", ["show", "replay", "purge"])
def test_letters_that_are_not_there_are_named_and_nothing_is_done(
    call: Call, file: Path, bury: Bury, streams: LineStreams, command: str
) -> None:
    letter = bury(b"junk", "", "not_msgpack", "no", b"junk")
    absent = ["1-1"] if command == "show" else [letter, "1-1", "99999999999999999999-0", "part 7"]
    ended = call("dead", command, *absent, "--config", file)
    assert ended.code == 1
    wanted = [repr(name) for name in absent if name != letter]
    assert f"no dead letter {', '.join(wanted)} in {streams.dead}" in ended.error
    assert "mhpc-worker dead list" in ended.error
    assert names(streams) == [letter]
    assert streams.client.xlen(streams.images) == 1


@pytest.mark.parametrize("command", ["replay", "purge"])
@pytest.mark.parametrize(
    ("arguments", "part"),
    [([], "either LETTER ... or --all"), (["1-1", "--all"], "either LETTER"), (["1-1", "--reason", "lost"], "--all")],
)
def test_which_letters_must_be_said_in_one_way(
    call: Call, file: Path, command: str, arguments: list[str], part: str
) -> None:
    ended = call("dead", command, *arguments, "--config", file)
    assert ended.code == 2
    assert part in ended.error


# -- replay ------------------------------------------------------------------------------------------------------------


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


# -- purge -------------------------------------------------------------------------------------------------------------


def test_purge_asks_once_and_deletes_what_was_named(
    call: Call, file: Path, bury: Bury, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (bury(b"junk", "", "not_msgpack", "no", b"junk") for _ in range(3))
    for said, code, left in (("n\n", 1, [first, second, third]), ("y\n", 0, [third])):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
        ended = call("dead", "purge", first, second, "--config", file)
        assert ended.code == code
        assert f"delete 2 dead letters of line {streams.line}" in ended.out
        assert names(streams) == left
    ended = call("dead", "purge", "--all", "--yes", "--config", file)
    assert (ended.code, ended.out) == (0, f"1 dead letter of line {streams.line} purged\n")
    assert names(streams) == []


@pytest.mark.parametrize("command", [["list"], ["show", "1-0"], ["replay", "--all"], ["purge", "--all"]])
def test_a_redis_that_is_not_reached_ends_with_code_3(call: Call, config: Any, command: list[str]) -> None:
    ended = call("dead", *command, "--config", config(url="redis://127.0.0.1:1/0"))
    assert ended.code == 3
    assert "is not reached" in ended.error


def test_replay_into_a_key_of_another_type_leaves_the_letters(
    call: Call, file: Path, bury: Bury, streams: LineStreams, client: redis.Redis
) -> None:
    letter = bury(b"junk", "", "not_msgpack", "no", b"junk")
    client.delete(streams.images)
    client.set(streams.images, "of another type")
    ended = call("dead", "replay", "--all", "--config", file)
    assert ended.code == 1  # Redis was reached
    for part in ("WRONGTYPE", "which mhpc-worker check names", "Rename it, or delete it"):
        assert part in ended.error
    assert names(streams) == [letter]
