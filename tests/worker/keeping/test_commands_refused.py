"""What is no command, or cannot be carried out as it came: refused once, by name, with what was expected."""

from typing import Any

import msgpack
import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.commanding import look, replies, trained
from tests.worker.keepers import MakeKeeper, opened
from worker.streams.control import send
from worker.streams.line_streams import LineStreams


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"v": 1, "name": ["relearn"]}, "`name` is ['relearn'], expected one of relearn"),
        ({"v": 1, "name": {"a": 1}}, "`name` is {'a': 1}, expected one of"),
        ({"v": 1, "name": None}, "`name` is None"),
        ({"v": [1], "name": "pause"}, "`v` is [1], expected a map with `v` 1"),
        ({"v": 1, "name": "pause", "args": [1]}, "`args` of pause is [1], expected a map"),
        ({"v": 1, "name": "pause", "args": None}, "`args` of pause is None, expected a map"),
        ({"v": 1, "name": "pause", "by": 7}, "`by` of pause is 7, expected a text"),
        ({"v": 1, "name": "pause", "by": None}, "`by` of pause is None"),
        ({"v": 1, "name": "normal", "args": {"entry": 5, "id": "a"}}, "entry of normal is 5, expected a text"),
        ({"v": 1, "name": "normal", "args": {"entry": None, "id": "a"}}, "entry of normal is None"),
        ({"v": 1, "name": "drop", "args": {"entry": "1-0", "id": ["a"]}}, "id of drop is ['a']"),
        ({"v": 1, "name": "rollback", "args": {"version": 7}}, "version of rollback is 7, expected a text"),
        ({"v": 1, "name": "rollback", "args": {"version": "../../etc"}}, "version '../../etc' is not there"),
        ({"v": 1, "name": "rate", "args": {"rate": float("nan")}}, "rate is nan, expected a number between 0 and 1"),
        ({"v": 1, "name": "rate", "args": {"rate": True}}, "rate is True"),
        ({"v": 1, "name": "rate", "args": {"rate": None}}, "rate is None"),
        ({"v": 1, "name": "relearn", "args": {"forgetting": 0}}, "expected a number above 0 and at most 1"),
        ({"v": 1, "name": "relearn", "args": {b"forgetting": 1}}, "came with the arguments b'forgetting'"),
    ],
)
def test_a_message_that_is_no_command_is_answered_with_what_was_expected(
    make_keeper: MakeKeeper, streams: LineStreams, value: Any, part: str
) -> None:
    keeper = trained(make_keeper, streams)
    streams.client.xadd(streams.control, {"command": msgpack.packb(value)})
    look(keeper)
    ((ok, text),) = replies(streams)
    assert not ok
    assert part in text


@pytest.mark.parametrize(
    ("value", "name", "by"),
    [
        ({"v": 1, "name": "rate", "args": {}, "by": "ann"}, "rate", "ann"),
        ({"v": 1, "name": "resum", "by": "ann"}, "resum", "ann"),
        ({"v": 1, "name": "pause", "args": [1], "by": "ann"}, "pause", "ann"),
        ({"v": 2, "name": "pause", "by": "ann"}, "pause", "ann"),
        ({"v": 1, "name": "pause", "by": None}, "pause", ""),
        ({"v": 1, "name": 7, "by": "ann"}, "", "ann"),
        ([1], "", ""),
    ],
)
def test_a_refusal_says_what_was_asked_and_by_whom_where_that_can_be_read(
    make_keeper: MakeKeeper, streams: LineStreams, value: Any, name: str, by: str
) -> None:
    keeper = opened(make_keeper())
    streams.client.xadd(streams.control, {"command": msgpack.packb(value)})
    with capture_logs() as logs:
        look(keeper)
    ((_, fields),) = streams.client.xrange(streams.replies)
    reply = msgpack.unpackb(fields[b"reply"])
    assert [(told["ok"], told["name"], told["by"]) for told in (reply, logs[-1])] == [(False, name, by)] * 2


@pytest.mark.parametrize("head", [b"", b"\x82\xa1v\x01\xa4name", b"\x83\xa1v\x01\xa4name\xa4rate\xa4args\x81\xa4rate"])
def test_a_command_of_lists_within_lists_is_refused_once(
    make_keeper: MakeKeeper, streams: LineStreams, head: bytes
) -> None:
    keeper = opened(make_keeper())
    streams.client.xadd(streams.control, {"command": head + b"\x91" * 1000 + b"\xc0"})
    look(keeper)
    ((ok, text),) = replies(streams)
    assert (ok, "[[[" in text, keeper.problem) == (False, True, "")


def test_what_keeps_a_refusal_from_being_committed_is_told_on_one_line(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = opened(make_keeper())
    send(streams, "pau\nse" * 1000, {}, "ann")

    def fails(_: bytes) -> None:
        raise redis.ConnectionError("the power is gone")

    monkeypatch.setattr(keeper, "answer_refusal", fails)
    with pytest.raises(redis.ConnectionError):
        look(keeper)
    assert keeper.problem == f"command {'pau se' * 1000:.40} failed: the power is gone"
