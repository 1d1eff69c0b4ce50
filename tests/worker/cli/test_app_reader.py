"""A user with read rights alone looks at all, and changes nothing: a real server with deploy/redis/users.acl."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_acl import Guarded
from tests.servers import started
from tests.worker.calling import Call
from tests.worker.helpers import encoded, eventually, picture
from tests.worker.test_results import publish
from worker.streams.line_streams import LineStreams

LINE = "press-3"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    """A server with those users, and a line with a result, a dead letter and a keeper."""
    server = Guarded(tmp_path)
    with started(tmp_path, *server.options()):
        eventually(server.socket.exists)
        admin = server.client("admin")
        eventually(admin.ping)
        streams = LineStreams(admin, LINE)
        streams.ensure_groups()
        epoch, *_ = streams.acquire("station-1#ab", 0)
        streams.commit(epoch, {"phase": "scoring", "model": "", "applied_through": "0-0", "threshold": "4.25"})
        publish(admin, LINE, "a", "b")
        admin.xadd(streams.dead, {"entry": "", "id": "c", "reason": "failed", "payload": encoded(picture())}, id="7-0")
        yield server


@pytest.fixture
def as_reader(guarded: Guarded, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f"[redis]\nurl = '{guarded.url}'\nusername = 'reader'\npassword_file = '{guarded.password_file('reader')}'\n"
        f"[snapshots]\ndirectory = '{tmp_path / 'snapshots'}'\n[[lines]]\nname = '{LINE}'\n"
    )
    return path


def content(guarded: Guarded) -> dict[bytes, Any]:
    admin = guarded.client("admin")
    return {key: admin.dump(key) for key in sorted(admin.keys("*"))}


def test_a_reader_sees_what_each_line_does_and_its_results(guarded: Guarded, as_reader: Path, call: Call) -> None:
    before = content(guarded)
    row = json.loads(call("status", "--config", as_reader, "--json").out)
    assert (row["line"], row["phase"], row["results"], row["dead"]) == (LINE, "scoring", 2, 1)
    assert (row["keeper"], row["problem"]) == ("station-1", None)
    table = call("status", "--config", as_reader)
    assert (table.code, table.err) == (0, "")
    assert LINE in table.out
    ended = call("tail", "--config", as_reader, "--from-start", "-n", "2", "--json")
    assert [json.loads(text)["id"] for text in ended.out.splitlines()] == ["a", "b"]
    for arguments in (["dead", "list"], ["dead", "show", "7-0"], ["review", "list"], ["snapshots", "list"]):
        ended = call(*arguments, "--config", as_reader)
        assert (ended.code, ended.err) == (0, ""), arguments
    assert content(guarded) == before


def test_lines_that_no_configuration_names_are_found_by_a_reader(guarded: Guarded, as_reader: Path, call: Call) -> None:
    as_reader.write_text(as_reader.read_text().partition("[[lines]]")[0])
    assert json.loads(call("status", "--config", as_reader, "--json").out)["line"] == LINE


@pytest.mark.parametrize(
    "arguments",
    [
        ["control", LINE, "pause", "--timeout", "1"],
        ["snapshots", "rollback", "0000000001-0000000001", "--timeout", "1"],
        ["dead", "replay", "7-0"],
        ["dead", "purge", "7-0", "--yes"],
        ["produce", "PICTURES"],
        ["check"],
    ],
)
def test_a_reader_changes_nothing_and_is_told_so_on_one_line(
    guarded: Guarded, as_reader: Path, call: Call, tmp_path: Path, arguments: list[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(encoded(picture()))
    before = content(guarded)
    ended = call(*[str(pictures) if part == "PICTURES" else part for part in arguments], "--config", as_reader)
    errors = [text for text in ended.err.splitlines() if text.startswith("error: ")]
    assert ended.code == (3 if arguments == ["check"] else 1)  # to check is to look whether a worker reaches Redis
    assert len(errors) == 1
    assert "deploy/redis/users.acl" in errors[0] or "no permissions to run the 'xadd' command" in errors[0]
    assert "secret-of" not in ended.err + ended.out
    assert content(guarded) == before
