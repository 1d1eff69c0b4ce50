"""Commands of many lines at once: what is wrong with one holds nobody up."""

import redis

from worker.streams.control import read_commands, read_commands_of_all, send
from worker.streams.line_streams import LineStreams


def test_of_each_line_come_the_commands_behind_its_own(client: redis.Redis, line: str) -> None:
    lines = [LineStreams(client, f"{line}-{i}") for i in range(3)]
    for streams in lines[:2]:
        sent = [send(streams, name, {}, "ann") for name in ("pause", "resume")]
    found = read_commands_of_all(client, dict(zip(lines, ("0-0", sent[0], "0-0"), strict=True)))
    assert found == {s.line: read_commands(s, "0-0")[first:] for s, first in zip(lines, (0, 1, 0), strict=True)}
    assert [command.name for command in read_commands(lines[0], "0-0")] == ["pause", "resume"]
    assert read_commands_of_all(client, {}) == {}


def test_an_error_stands_in_place_of_its_own_lines_commands(client: redis.Redis, line: str) -> None:
    broken, well = (LineStreams(client, f"{line}-{name}") for name in ("a", "b"))
    client.set(broken.control, "in the way")
    sent = send(well, "pause", {}, "ann")
    found = read_commands_of_all(client, {broken: "0-0", well: "0-0"})
    assert isinstance(found[broken.line], redis.ResponseError)
    assert [command.entry for command in read_commands(well, "0-0")] == [sent]
    assert found[well.line] == read_commands(well, "0-0")
