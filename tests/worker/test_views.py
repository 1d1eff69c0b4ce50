import dataclasses
import json
import subprocess
import sys
from typing import Any

import msgpack
import numpy as np
import pytest
import redis
from pydantic import SecretStr

from tests.worker.keeping import take
from worker import views
from worker.errors import RedisUnreachableError
from worker.message import HeatMap, Result, decode_result, encode_result
from worker.settings import Settings
from worker.streams.line_streams import LineStreams

RESULT = Result(
    line="press-3", entry="5-1", id="part 7", phase="scoring", model="0000000001-0000000002", score=3.5, threshold=4.25,
    anomalous=False, provisional=False, ts=7.5, latency_ms=12.5, meta={"n": [1]},
    map=HeatMap(np.full((2, 3), 255, np.uint8), 1.0),
)  # fmt: skip


def publish(client: Any, line: str, *identities: str) -> None:
    for identity in identities:
        value = encode_result(dataclasses.replace(RESULT, id=identity))
        client.xadd(LineStreams(client, line).scores, {"result": value})


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


class AddsInBetween(redis.Redis):
    """The real client; a result arrives each time it has waited in vain, before it waits again."""

    def xread(self, *args: Any, **options: Any) -> Any:
        reply = super().xread(*args, **options)
        if not reply:
            publish(self, next(iter(args[0])).split("{")[1].split("}")[0], "came in between")
        return reply


# -- status ------------------------------------------------------------------------------------------------------------


UNTOLD = {
    "problem": None, "provisional": False, "false_positive_rate": None, "rate_interval": None, "progress": None,
    "outside_share": None, "subspace_change": None, "quarantined": 0, "drift": None,
}  # fmt: skip


def test_a_line_that_nobody_has_seen_has_an_empty_status(client: redis.Redis, line: str) -> None:
    assert views.line_status(client, line) == {
        "line": line, "phase": None, "model": None, "epoch": None, "applied_through": None, "done_through": None,
        "threshold": None, "lag": None, "pending": 0, "oldest_pending_seconds": None, "results": 0, "dead": 0,
        "keeper": None, **UNTOLD,
    }  # fmt: skip


def test_a_status_tells_what_a_line_is_doing(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    epoch, *_ = streams.acquire("station-1#ab", 0)
    committed = {"phase": "scoring", "model": "m", "applied_through": "3-0", "threshold": "4.25", "provisional": "1"}
    streams.commit(epoch, committed | {"rate": "0.01", "rate_interval": "0.002 0.03"})
    streams.show(epoch, {"progress": "", "outside_share": "0.004", "quarantined": "3", "drift": "0.5"})
    for _ in range(3):
        streams.client.xadd(streams.images, {"batch": b""})
    take(streams, 2)
    publish(client, line, "a", "b")
    streams.client.xadd(streams.dead, {"reason": "truncated"})
    status = views.line_status(client, line)
    assert status.pop("lag") in {None, 1}  # servers before 7.0 cannot tell
    assert status.pop("oldest_pending_seconds") >= 0
    assert status == {
        "line": line, "phase": "scoring", "model": "m", "epoch": 1, "applied_through": "3-0", "done_through": None,
        "threshold": 4.25, "pending": 2, "results": 2, "dead": 1, "keeper": "station-1", **UNTOLD,
        "provisional": True, "false_positive_rate": 0.01, "rate_interval": [0.002, 0.03], "outside_share": 0.004,
        "quarantined": 3, "drift": 0.5,
    }  # fmt: skip
    json.dumps(status)


def test_a_status_before_the_first_model_has_none_and_no_threshold(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    epoch, *_ = streams.acquire("name#with#hashes#ab", 0)
    streams.commit(epoch, {"phase": "learning", "model": "", "applied_through": "0-0", "threshold": ""})
    status = views.line_status(client, line)
    given = [status[key] for key in ("phase", "model", "threshold", "keeper", "oldest_pending_seconds")]
    assert given == ["learning", None, None, "name#with#hashes", None]


def test_lines_are_known_by_their_streams(client: redis.Redis, line: str) -> None:
    names = [f"{line}-{i}" for i in range(2)]
    for name in reversed(names):
        LineStreams(client, name).ensure_groups()
    client.set(f"mhpc:{{{line}-2}}:state", "no stream of images")
    assert [name for name in views.known_lines(client) if name.startswith(line)] == names


def test_a_server_that_does_not_answer_is_reported() -> None:
    settings = Settings.model_validate({"redis": {"url": SecretStr("redis://127.0.0.1:1/0")}})
    with pytest.raises(RedisUnreachableError, match="is not reached"):
        views.connect(settings)


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_come_from_the_oldest_on_if_asked(client: redis.Redis, line: str) -> None:
    publish(client, line, "a", "b")
    results = views.results(client, line, from_start=True)
    assert [next(results)["id"] for _ in range(2)] == ["a", "b"]
    publish(client, line, "c")
    assert next(results)["id"] == "c"


def test_a_result_is_given_as_it_was_published_with_its_map_as_lists(client: redis.Redis, line: str) -> None:
    publish(client, line, "a")
    result = next(views.results(client, line, from_start=True))
    expected = decode_result(encode_result(dataclasses.replace(RESULT, id="a")))
    assert result == {**expected, "map": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]}


def test_no_result_is_passed_over_between_two_looks(redis_url: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "BLOCK_MS", 1)
    client = AddsInBetween.from_url(redis_url, protocol=2)
    publish(client, line, "old")
    assert next(views.results(client, line, from_start=False))["id"] == "came in between"


def test_a_result_stands_on_one_line_of_a_terminal() -> None:
    result = decode_result(encode_result(RESULT))
    assert views.result_text(result).split() == ["ok", "3.500", "/", "4.250", "12", "ms", "scoring", "part", "7"]
    anomalous = views.result_text({**result, "anomalous": True})
    assert anomalous.startswith("ANOMALOUS ")
    assert anomalous.endswith(" part 7  5-1")  # the entry, which commands ask for
    early = {**result, "score": None, "threshold": None, "anomalous": None, "phase": "learning"}
    assert views.result_text(early).split()[:4] == ["-", "-", "/", "-"]


@pytest.mark.parametrize("field", ["id", "phase", "entry"])
@pytest.mark.parametrize("value", ["two\nlines", "\x1b[31mred", "tab\there", "\x1b]0;owned\x07", "x" * 1_000_000])
def test_a_result_cannot_write_to_the_terminal_as_it_likes(field: str, value: str) -> None:
    text = views.result_text({**decode_result(encode_result(RESULT)), "anomalous": True, field: value})
    assert text.isprintable()
    assert len(text) < 700  # an id that a worker takes is there as a whole


def test_numbers_that_are_none_and_that_are_beyond_measure_stand_on_one_line() -> None:
    result = decode_result(encode_result(RESULT))
    text = views.result_text({**result, "score": 1e308, "threshold": None, "latency_ms": -1e300})
    assert text.split()[:6] == ["ok", "1e+308", "/", "-", "-1e+300", "ms"]


@pytest.mark.parametrize(
    ("meta", "written"),
    [
        (None, None),
        ({"thumbnail": b"\xff\x00"}, {"thumbnail": "/wA="}),
        (
            {"nested": [{"deep": b"x"}], "none": None, "yes": True},
            {"nested": [{"deep": "eA=="}], "none": None, "yes": True},
        ),
        ({"nan": [float("nan"), float("-inf")]}, {"nan": [None, None]}),
        ({b"\xff": 1, "when": msgpack.Timestamp(1)}, {"/w==": 1, "when": "Timestamp(seconds=1, nanoseconds=0)"}),
    ],
)
def test_any_meta_can_be_written_as_json(client: redis.Redis, line: str, meta: Any, written: Any) -> None:
    packed = {**msgpack.unpackb(encode_result(RESULT)), "meta": meta}
    client.xadd(LineStreams(client, line).scores, {"result": msgpack.packb(packed)})
    result = next(views.results(client, line, from_start=True))
    assert json.loads(views.result_json(result), parse_constant=pytest.fail)["meta"] == written


def test_what_is_no_number_is_null_in_json_and_a_dash_in_text(client: redis.Redis, line: str) -> None:
    nan = float("nan")
    odd = {**msgpack.unpackb(encode_result(RESULT)), "score": nan, "latency_ms": nan}
    odd["map"]["max"] = nan
    client.xadd(LineStreams(client, line).scores, {"result": msgpack.packb(odd)})
    result = next(views.results(client, line, from_start=True))
    again = json.loads(views.result_json(result), parse_constant=pytest.fail)
    assert (again["score"], again["map"][0]) == (None, [None] * 3)
    assert views.result_text(result).split()[:6] == ["ok", "-", "/", "4.250", "-", "ms"]


@pytest.mark.parametrize("odd", [{"anomalous": "\x1b[2J" * 100_000}, {"meta": nested(900)}], ids=["text", "nested"])
def test_a_value_that_cannot_be_told_is_left_out_in_few_words(
    client: redis.Redis, line: str, odd: dict[str, Any]
) -> None:
    packed = {**msgpack.unpackb(encode_result(RESULT)), **odd}
    client.xadd(LineStreams(client, line).scores, {"result": msgpack.packb(packed)})
    publish(client, line, "well")
    told: list[str] = []
    assert next(views.results(client, line, True, told.append))["id"] == "well"
    assert len(told) == 1
    assert "is no result: " in told[0]
    assert len(told[0]) < 400


def test_what_people_look_at_needs_no_torch() -> None:
    code = "import sys, worker.cli, worker.views, worker.producer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
