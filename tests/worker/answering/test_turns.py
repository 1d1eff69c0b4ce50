import time
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from torch import Tensor

from tests.worker.helpers import encoded, item, message, picture
from tests.worker.station import MODEL, State, Station, forwards, stained
from worker.answering import batching
from worker.engine import Engine
from worker.line import CALIBRATING, LEARNING, SCORING
from worker.streams.line_streams import ANSWERING, Entry

FIELDS = {
    "v", "line", "entry", "id", "phase", "model", "score", "threshold", "anomalous", "provisional", "ts", "latency_ms",
    "meta",
}  # fmt: skip


@pytest.fixture
def station(client: redis.Redis, engine: Engine, tmp_path: Path, line: str) -> Station:
    return Station(client, engine, tmp_path, line)


# -- results -----------------------------------------------------------------------------------------------------------


def test_while_no_model_exists_a_result_has_no_score(station: Station, line: str) -> None:
    entry = station.send(line, message(item("a", ts=12.5, meta={"part": 7}), item("b")))
    assert station.turn() == 1
    first, second = station.results(line)
    assert set(first) == FIELDS
    assert {**first, "latency_ms": None} == {
        "v": 1, "line": line, "entry": entry, "id": "a", "phase": LEARNING, "model": None, "score": None,
        "threshold": None, "anomalous": None, "provisional": False, "ts": 12.5, "latency_ms": None, "meta": {"part": 7},
    }  # fmt: skip
    assert (second["id"], second["ts"], second["meta"]) == ("b", None, None)
    assert station.pending(line) == 0


def test_while_the_line_calibrates_scores_are_provisional(
    station: Station, line: str, states: dict[str, State]
) -> None:
    station.restore(line, states[CALIBRATING])
    station.send(line, message(item("a")))
    station.turn()
    result = station.results(line)[0]
    assert set(result) == FIELDS | {"map"}
    assert result["score"] > 0
    given = {key: result[key] for key in ("phase", "model", "threshold", "anomalous", "provisional")}
    assert given == {
        "phase": CALIBRATING, "model": MODEL, "threshold": None, "anomalous": None, "provisional": True,
    }  # fmt: skip


def test_a_line_that_scores_tells_good_parts_from_bad(station: Station, line: str, states: dict[str, State]) -> None:
    station.restore(line, states[SCORING])
    sent = int(time.time() * 1000)
    station.send(line, message(item("5"), item("bad", data=stained(6))))
    station.turn()
    good, bad = station.results(line)
    for result in (good, bad):
        assert set(result) == FIELDS | {"map"}
        assert (result["phase"], result["model"], result["provisional"]) == (SCORING, MODEL, False)
        assert result["threshold"] == station.line(line).serving.threshold
        assert result["anomalous"] is (result["score"] > result["threshold"])
        assert result["map"].shape == (8, 8)
        assert 0 <= result["latency_ms"] < time.time() * 1000 - sent + 1000
    assert (good["anomalous"], bad["anomalous"]) == (False, True)
    top = np.sort(bad["map"].ravel())[-20:].mean()
    assert bad["score"] == pytest.approx(top, abs=float(bad["map"].max()) / 255)


def test_a_score_does_not_depend_on_what_it_came_with(station: Station, line: str, states: dict[str, State]) -> None:
    station.restore(line, states[SCORING])
    station.send(line, message(item("7")))
    station.turn()
    station.send(line, message(*[item(str(i)) for i in range(40)]))
    station.turn()
    alone, *together = station.results(line)
    assert [result["id"] for result in together] == [str(i) for i in range(40)]
    assert together[7]["score"] == pytest.approx(alone["score"], rel=1e-4)


def test_lines_are_answered_together_each_by_its_own_model(
    client: redis.Redis,
    engine: Engine,
    tmp_path: Path,
    line: str,
    states: dict[str, State],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "FRESH_SECONDS", 60.0)  # a batch is of all that is in hand, however long that takes
    names = [f"{line}-{i}" for i in range(3)]
    station = Station(client, engine, tmp_path, *names)
    station.restore(names[1], states[SCORING])
    entries = {name: [station.send(name, message(item("1"), item("2"))) for _ in range(3)] for name in names}
    before = forwards(engine)
    assert station.turn() == 9
    assert forwards(engine) == before + 3  # 18 images by 8, whosever they are
    for name in names:
        results = station.results(name)
        assert [(result["entry"], result["id"]) for result in results] == [
            (entry, identity) for entry in entries[name] for identity in ("1", "2")
        ]
        assert {result["line"] for result in results} == {name}
        assert {result["score"] is None for result in results} == {name != names[1]}


def test_without_lines_and_without_entries_there_is_nothing_to_do(
    client: redis.Redis, engine: Engine, tmp_path: Path, line: str
) -> None:
    assert Station(client, engine, tmp_path, line).turn() == 0
    empty = Station(client, engine, tmp_path)
    assert empty.answering.turn(client, {}, block_ms=10) == 0


# -- dead letters ------------------------------------------------------------------------------------------------------


def test_a_poisoned_batch_costs_the_bad_images_alone(station: Station, line: str, states: dict[str, State]) -> None:
    station.restore(line, states[SCORING])
    entry = station.send(
        line,
        message(
            item("1"),
            item("no picture", data=b"rubbish"),
            item("2"),
            item("cut", format="jpeg", data=encoded(picture(), "JPEG")[:-300]),
            item("ended", format="jpeg", data=encoded(picture(), "JPEG")[:-300] + b"\xff\xd9"),
            item("3", ts="now"),
            "not even a map",
            item("4", box={1: 2}),
        ),
    )
    station.turn()
    assert [result["id"] for result in station.results(line)] == ["1", "2", "4"]
    letters = station.letters(line)
    assert {(letter["id"], letter["reason"]) for letter in letters} == {
        ("no picture", "not_an_image"), ("cut", "truncated"), ("ended", "truncated"), ("3", "wrong_shape"),
        ("#6", "wrong_shape"),
    }  # fmt: skip
    for letter in letters:
        assert set(letter) == {"entry", "id", "reason", "error", "deliveries", "payload"}
        assert (letter["entry"], letter["deliveries"]) == (entry, "1")
        assert letter["error"]
        assert len(letter["payload"]) <= 100
    assert station.pending(line) == 0
    assert station.counted("images_total", line=line, outcome="scored") == 3
    assert station.counted("images_total", line=line, outcome="dead") == 5
    assert station.counted("dead_letters_total", line=line, reason="wrong_shape") == 2


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (b"\xc1 is not msgpack", "not_msgpack"),
        (message(item(), v=9), "wrong_version"),
        (message(), "empty_batch"),
        (message("x"), "wrong_shape"),
    ],
)
def test_an_entry_without_a_usable_image_ends_in_one_dead_letter_and_the_next_is_answered(
    station: Station, line: str, batch: bytes, reason: str
) -> None:
    station.send(line, batch)
    station.send(line, message(item("next")))
    assert station.turn() == 2
    assert [letter["reason"] for letter in station.letters(line)] == [reason]
    assert [result["id"] for result in station.results(line)] == ["next"]
    assert station.pending(line) == 0


def test_an_undecodable_entry_keeps_the_beginning_of_what_came(station: Station, line: str) -> None:
    station.send(line, b"\xc1" * 1000)
    station.client.xadd(station.streams(line).images, {"picture": "x"})
    station.turn()
    undecodable, without = station.letters(line)
    assert (undecodable["id"], undecodable["payload"]) == ("", "\xc1" * 100)
    assert (without["reason"], without["payload"]) == ("no_batch_field", "")


def test_an_entry_that_was_trimmed_while_pending_is_a_lost_one(station: Station, line: str) -> None:
    station.send(line, message(item("a")))
    station.client.xreadgroup(ANSWERING, "station-1", {station.streams(line).images: ">"})
    station.client.xtrim(station.streams(line).images, maxlen=0, approximate=False)
    station.answering.intake.rewind([line])
    station.turn()  # from Redis 7.0 on the claim finds it, before the own pending entries are read
    assert [letter["reason"] for letter in station.letters(line)] == ["lost"]
    assert station.counted("entries_lost_total", line=line) == 1
    assert station.pending(line) == 0


# -- once, and after an error ------------------------------------------------------------------------------------------


def test_after_a_start_own_pending_entries_come_before_new_ones(
    client: redis.Redis, engine: Engine, tmp_path: Path, line: str
) -> None:
    before = Station(client, engine, tmp_path, line)
    sent = [before.send(line, message(item(str(number)))) for number in range(12)]
    client.xreadgroup(ANSWERING, "station-1", {before.streams(line).images: ">"}, count=10)
    again = Station(client, engine, tmp_path, line)
    again.answering.intake.rewind([line])
    while again.turn():
        pass
    assert [result["entry"] for result in again.results(line)] == sent
    assert again.pending(line) == 0


def test_what_another_worker_was_given_is_left_to_it(station: Station, line: str) -> None:
    station.send(line, message(item("a")))
    station.client.xreadgroup(ANSWERING, "station-2", {station.streams(line).images: ">"})
    station.answering.intake.rewind([line])
    assert station.turn() == 0
    assert station.results(line) == []


def test_an_entry_that_somebody_else_answered_meanwhile_is_neither_published_nor_counted(
    station: Station, line: str
) -> None:
    entry = station.send(line, message(item("a"), item("b", data=b"rubbish")))
    key = station.streams(line).images
    station.client.xreadgroup(ANSWERING, "station-1", {key: ">"})
    publish = station.streams(line).publish
    station.streams(line).publish = lambda *args: (station.client.xack(key, ANSWERING, entry), publish(*args))[1]  # type: ignore[method-assign]  # somebody is faster
    station.answering.intake.rewind([line])
    assert station.turn() == 1
    assert (station.results(line), station.letters(line)) == ([], [])
    assert station.counted("images_total", line=line, outcome="unscored") == 0
    assert station.counted("dead_letters_total", line=line, reason="not_an_image") == 0


def test_what_came_of_images_is_counted(station: Station, line: str, states: dict[str, State]) -> None:
    station.send(line, message(item("1")))
    station.turn()
    station.restore(line, states[SCORING])
    station.send(line, message(item("2"), item("bad", data=stained(3))))
    station.turn()
    assert station.counted("images_total", line=line, outcome="unscored") == 1
    assert station.counted("images_total", line=line, outcome="scored") == 2
    assert station.counted("anomalies_total", line=line) == 1
    assert station.counted("end_to_end_seconds_count", line=line) == 3
    assert station.counted("score_to_threshold_count", line=line) == 2
    for stage in ("read", "decode", "publish"):  # what is judged is timed by the engine's
        assert station.counted("stage_seconds_count", stage=stage) > 0


# -- features for learning ---------------------------------------------------------------------------------------------


def features(station: Station, name: str, entry: str, batch: bytes) -> Tensor:
    return torch.cat(list(station.answering.opening.extract(name, Entry(entry, batch))))


def test_the_features_that_answering_left_equal_those_extracted_anew(station: Station, line: str) -> None:
    batches = [message(*[item(str(10 * n + i)) for i in range(3)], item("x", data=b"rubbish")) for n in range(3)]
    entries = [station.send(line, batch) for batch in batches]
    station.turn()
    assert station.cache.size == 3 * 3 * 64 * 384 * 4
    for entry, batch in zip(entries, batches, strict=True):
        left = features(station, line, entry, batch)
        anew = features(station, line, entry, batch)
        assert left.shape == anew.shape == (3, 64, 384)
        torch.testing.assert_close(left, anew, rtol=1e-4, atol=1e-5)
    assert station.cache.size == 0


def test_a_line_that_scores_leaves_no_features(station: Station, line: str, states: dict[str, State]) -> None:
    station.restore(line, states[SCORING])
    station.send(line, message(item("1")))
    station.turn()
    assert station.cache.size == 0


def test_features_of_a_part_of_an_entry_are_not_taken_for_all_of_it(
    client: redis.Redis, engine: Engine, tmp_path: Path, line: str
) -> None:
    room = 35 * 64 * 384 * 4  # for the first forward pass of 32 images, not for the second
    station = Station(client, engine, tmp_path, line, room=room)
    batch = message(*[item(str(i)) for i in range(40)])
    entry = station.send(line, batch)
    station.turn()
    assert station.cache.size <= room
    assert len(features(station, line, entry, batch)) == 40


def test_an_entry_without_a_usable_image_has_no_features(station: Station, line: str) -> None:
    for entry in (Entry("1-0", None), Entry("1-0", None, lost=True), Entry("1-0", message(item(data=b"x")))):
        assert list(station.answering.opening.extract(line, entry)) == []
