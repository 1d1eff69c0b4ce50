import dataclasses
import json
from typing import Any

import msgpack
import numpy as np
import pytest
import redis

from worker import results
from worker.message import HeatMap, Result, decode_result, encode_result
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


def test_results_come_from_the_oldest_on_if_asked(client: redis.Redis, line: str) -> None:
    publish(client, line, "a", "b")
    found = results.follow(client, line, from_start=True)
    assert [next(found)["id"] for _ in range(2)] == ["a", "b"]
    publish(client, line, "c")
    assert next(found)["id"] == "c"


def test_a_result_is_given_as_it_was_published_with_its_map_as_lists(client: redis.Redis, line: str) -> None:
    publish(client, line, "a")
    result = next(results.follow(client, line, from_start=True))
    expected = decode_result(encode_result(dataclasses.replace(RESULT, id="a")))
    assert result == {**expected, "map": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]}


def test_no_result_is_passed_over_between_two_looks(redis_url: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "BLOCK_MS", 1)
    client = AddsInBetween.from_url(redis_url, protocol=2)
    publish(client, line, "old")
    assert next(results.follow(client, line, from_start=False))["id"] == "came in between"


def test_a_result_stands_on_one_line_of_a_terminal() -> None:
    result = decode_result(encode_result(RESULT))
    assert results.as_text(result).split() == ["ok", "3.500", "/", "4.250", "12", "ms", "scoring", "part", "7"]
    anomalous = results.as_text({**result, "anomalous": True})
    assert anomalous.startswith("ANOMALOUS ")
    assert anomalous.endswith(" part 7  5-1")  # the entry, which commands ask for
    early = {**result, "score": None, "threshold": None, "anomalous": None, "phase": "learning"}
    assert results.as_text(early).split()[:4] == ["-", "-", "/", "-"]


@pytest.mark.parametrize("field", ["id", "phase", "entry"])
@pytest.mark.parametrize("value", ["two\nlines", "\x1b[31mred", "tab\there", "\x1b]0;owned\x07", "x" * 1_000_000])
def test_a_result_cannot_write_to_the_terminal_as_it_likes(field: str, value: str) -> None:
    text = results.as_text({**decode_result(encode_result(RESULT)), "anomalous": True, field: value})
    assert text.isprintable()
    assert len(text) < 700  # an id that a worker takes is there as a whole


def test_numbers_that_are_none_and_that_are_beyond_measure_stand_on_one_line() -> None:
    result = decode_result(encode_result(RESULT))
    text = results.as_text({**result, "score": 1e308, "threshold": None, "latency_ms": -1e300})
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
    result = next(results.follow(client, line, from_start=True))
    assert json.loads(results.as_json(result), parse_constant=pytest.fail)["meta"] == written


def test_what_is_no_number_is_null_in_json_and_a_dash_in_text(client: redis.Redis, line: str) -> None:
    nan = float("nan")
    odd = {**msgpack.unpackb(encode_result(RESULT)), "score": nan, "latency_ms": nan}
    odd["map"]["max"] = nan
    client.xadd(LineStreams(client, line).scores, {"result": msgpack.packb(odd)})
    result = next(results.follow(client, line, from_start=True))
    again = json.loads(results.as_json(result), parse_constant=pytest.fail)
    assert (again["score"], again["map"][0]) == (None, [None] * 3)
    assert results.as_text(result).split()[:6] == ["ok", "-", "/", "4.250", "-", "ms"]


@pytest.mark.parametrize("odd", [{"anomalous": "\x1b[2J" * 100_000}, {"meta": nested(900)}], ids=["text", "nested"])
def test_a_value_that_cannot_be_told_is_left_out_in_few_words(
    client: redis.Redis, line: str, odd: dict[str, Any]
) -> None:
    packed = {**msgpack.unpackb(encode_result(RESULT)), **odd}
    client.xadd(LineStreams(client, line).scores, {"result": msgpack.packb(packed)})
    publish(client, line, "well")
    told: list[str] = []
    assert next(results.follow(client, line, True, told.append))["id"] == "well"
    assert len(told) == 1
    assert "is no result: " in told[0]
    assert len(told[0]) < 400
