import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.worker.calling import Call
from tests.worker.helpers import encoded, picture
from worker.message import Image
from worker.streams.line_streams import LineStreams, ReviewPart
from worker.streams.review import review_part

JPEG = encoded(picture(1, 16, 16), "JPEG")
RAW = Image(id="raw", format="raw", data=bytes(range(12)), shape=(2, 2, 3))
GREY = Image(id="grey", format="raw", data=bytes(range(6)), shape=(2, 3, 1))


def jpeg(name: str) -> Image:
    return Image(id=name, format="jpeg", data=JPEG)


def add(streams: LineStreams, *parts: ReviewPart) -> None:
    for part in parts:
        streams.client.xadd(streams.review, part._asdict())


def flagged(number: int, image: Image) -> ReviewPart:
    return review_part(f"{1764150000000 + number}-0", image, "anomalous", 12.5 + number, 8.25, "0000000001-0000000002")


def set_aside(number: int, image: Image, learned: str = "") -> ReviewPart:
    return review_part(f"{1764150000000 + number}-0", image, "quarantined", None, None, "", learned)


# -- list --------------------------------------------------------------------------------------------------------------


def test_list_shows_the_newest_parts_last(call: Call, config: Any, streams: LineStreams) -> None:
    add(streams, *(flagged(n, jpeg(f"part-{n}")) for n in range(9)), set_aside(9, jpeg("part-9")))
    ended = call("review", "list", "--config", config(), "--json")
    assert (ended.code, ended.err) == (0, "")
    rows = [json.loads(text) for text in ended.out.splitlines()]
    assert [row["id"] for row in rows] == [f"part-{n}" for n in range(10)]
    assert {name: value for name, value in rows[2].items() if name != "when"} == {
        "entry": "1764150000002-0",
        "id": "part-2",
        "why": "anomalous",
        "score": 14.5,
        "threshold": 8.25,
        "model": "0000000001-0000000002",
        "learned": None,
    }
    assert (rows[9]["why"], rows[9]["score"], rows[9]["threshold"], rows[9]["model"]) == ("quarantined", *[None] * 3)
    text = call("review", "list", "--config", config(), "-n", "2").out.splitlines()
    assert [row.split()[-2:] for row in text[1:3]] == [["1764150000008-0", "part-8"], ["1764150000009-0", "part-9"]]
    assert text[3] == "the newest 2 of 10; --count 0 shows all"


def test_list_shows_those_of_one_reason_if_asked(call: Call, config: Any, streams: LineStreams, line: str) -> None:
    add(streams, flagged(1, jpeg("a")), set_aside(2, jpeg("b")))
    ended = call("review", "list", "--config", config(), "--why", "quarantined", "--json")
    assert [json.loads(text)["id"] for text in ended.out.splitlines()] == ["b"]
    add(streams, set_aside(3, jpeg("c"), learned="1"))
    ended = call("review", "list", "--config", config(), "--why", "quarantined", "--json")
    assert [json.loads(text)["learned"] for text in ended.out.splitlines()] == [False, True]
    assert call("review", "list", "--config", config(), "--why", "sad").error == (
        "error: --why 'sad' is unknown; expected one of anomalous, quarantined\n"
    )
    streams.client.delete(streams.review)
    ended = call("review", "list", "--config", config(), "-w", "anomalous")
    assert (ended.code, ended.out) == (0, f"review of line {line} holds no part that is anomalous\n")
    assert call("review", "list", "--config", config(), "--json") == (0, "", "")


def test_list_fits_into_80_columns_whatever_was_written(
    call: Call, config: Any, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    add(streams, set_aside(1, jpeg("camera-1/2026-03-04/" + 40 * "x")), flagged(10**6, jpeg("[red]no\x1b[2J")))
    streams.client.xadd(streams.review, {"anything": "else", "score": "high"})
    streams.client.xadd(streams.review, {"id": "far"}, id="99999999999999999-0")
    head, *rows = call("review", "list", "--config", config()).out.splitlines()
    assert head.split() == ["why", "when", "score", "limit", "entry", "id"]
    assert max(map(len, [head, *rows])) <= 80
    assert rows[0].startswith("quarantined ")
    assert "\x1b" not in "".join(rows)


# -- show --------------------------------------------------------------------------------------------------------------


def test_show_tells_all_that_review_holds_and_saves_the_picture_as_it_came(
    call: Call, config: Any, streams: LineStreams, tmp_path: Path
) -> None:
    add(streams, flagged(1, jpeg("part-1")), flagged(2, jpeg("part-1")))
    path = tmp_path / "part.jpg"
    ended = call("review", "show", "1764150000001-0", "part-1", "--config", config(), "--picture", path)
    assert (ended.code, ended.err) == (0, "")
    told = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert (told["why"], told["score"], told["threshold"]) == ("anomalous", "13.5", "8.25")
    assert told["picture"] == f"jpeg, {len(JPEG)} bytes"
    assert ended.out.endswith(f"written to {path}\n")
    assert path.read_bytes() == JPEG


@pytest.mark.parametrize("image", [RAW, GREY], ids=["colour", "grey"])
def test_raw_pixels_are_saved_as_a_png(
    call: Call, config: Any, streams: LineStreams, tmp_path: Path, image: Image
) -> None:
    add(streams, set_aside(1, image))
    path = tmp_path / "part"
    assert call("review", "show", "1764150000001-0", image.id, "--config", config(), "--picture", path).code == 0
    found = Pillow.open(io.BytesIO(path.read_bytes()))
    assert (found.format, np.asarray(found).tobytes()) == ("PNG", image.data)


def test_what_is_not_there_is_told(call: Call, config: Any, streams: LineStreams, tmp_path: Path, line: str) -> None:
    part, show = set_aside(1, jpeg("part-1")), ("review", "show", "--config", config())
    add(streams, part._replace(image=b""), part._replace(id="junk", image=b"\xc1"))
    assert f"review of line {line} holds no part 'part-2'" in call(*show, part.entry, "part-2").error
    ended = call(*show, part.entry, "part-1", "--json")
    assert json.loads(ended.out)["picture"] == "none: too old: review does not hold this picture any more"
    path = tmp_path / "part.jpg"
    for name in ("part-1", "junk"):
        ended = call(*show, part.entry, name, "--picture", path)
        assert ended.error.startswith(f"error: --picture {path}: not written: ")
        assert (ended.code, ended.out, path.exists()) == (1, "", False)


def test_a_picture_that_cannot_be_written_is_told(
    call: Call, config: Any, streams: LineStreams, tmp_path: Path
) -> None:
    add(streams, flagged(1, jpeg("a")))
    ended = call("review", "show", "1764150000001-0", "a", "--config", config(), "--picture", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.error.endswith("name a file that can be\n")
