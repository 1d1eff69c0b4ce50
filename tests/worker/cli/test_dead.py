import io
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from tests.worker.burying import JPEG, Bury, names, newest
from tests.worker.burying import bury as bury  # a fixture
from tests.worker.burying import file as file  # a fixture
from tests.worker.calling import Call
from tests.worker.helpers import item, message
from worker.message import OBJECTS
from worker.streams.line_streams import LineStreams

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
