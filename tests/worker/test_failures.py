"""What fails with an image in hand costs that image, and nothing is lost or answered twice."""

from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from torch import Tensor

from mhpc.core.patch_maps import PatchMaps
from tests.worker.helpers import encoded, item, message, picture
from tests.worker.station import Station
from worker.answering import batching
from worker.devices import device_failures
from worker.engine import Engine
from worker.errors import DeviceError
from worker.failpoints import armed
from worker.message import Image, Rejected, decode_batch
from worker.settings import LimitSettings
from worker.streams.line_streams import ANSWERING

ENDED = "the process ended 3 times with this image in hand: it crashed, or its device failed"


@pytest.fixture
def station(client: redis.Redis, engine: Engine, tmp_path: Path, line: str) -> Station:
    return Station(client, engine, tmp_path, line)


def until_quiet(station: Station) -> None:
    while station.turn():
        pass


def test_an_image_that_fails_with_an_error_nobody_expected_costs_that_image_alone(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.answering.opening.failpoint", armed("decode=5:error:1+"))
    for first in (0, 8, 16):
        station.send(line, message(*(item(str(number)) for number in range(first, first + 8))))
    until_quiet(station)
    assert sorted(int(result["id"]) for result in station.results(line)) == [n for n in range(24) if n != 5]
    (letter,) = station.letters(line)
    assert (letter["id"], letter["reason"]) == ("5", "failed")
    assert letter["error"].startswith("failed 3 times: RuntimeError: ")
    assert station.pending(line) == 0
    assert station.client.hlen(station.streams(line).attempts) == 0


def test_an_error_that_passes_costs_nothing(station: Station, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.answering.opening.failpoint", armed("decode=1:error:1"))
    station.send(line, message(item("0"), item("1")))
    until_quiet(station)
    assert [result["id"] for result in station.results(line)] == ["0", "1"]
    assert station.letters(line) == []


def test_after_three_crashes_with_it_in_hand_an_image_is_given_up_and_its_neighbours_are_answered(
    station: Station, line: str
) -> None:
    entry = station.send(line, message(item("a"), item("b"), item("c")))
    station.client.xreadgroup(ANSWERING, "station-1", {station.streams(line).images: ">"})
    for _ in range(3):  # as three processes that crashed left it
        station.streams(line).mark(f"{entry}/1")
    station.answering.intake.rewind([line], alone=True)
    until_quiet(station)
    assert [result["id"] for result in station.results(line)] == ["a", "c"]
    (letter,) = station.letters(line)
    assert (letter["id"], letter["error"]) == ("b", ENDED)
    assert station.client.hlen(station.streams(line).attempts) == 0


@pytest.mark.parametrize("grey", [False, True])
def test_an_image_tried_by_itself_gets_the_verdict_that_it_gets_among_others(
    station: Station, line: str, grey: bool
) -> None:
    pixels = picture(3)[:, :, :1] if grey else picture(3)
    raw = Image("r", "raw", pixels.tobytes(), shape=(*pixels.shape[:2], pixels.shape[2]), ts=1.5, meta={"k": [1]})
    fields = {"id": raw.id, "format": "raw", "data": raw.data, "shape": list(raw.shape or ()), "ts": 1.5}
    for alone in (False, True):
        station.send(line, message({**fields, "meta": raw.meta}))
        station.client.xreadgroup(ANSWERING, "station-1", {station.streams(line).images: ">"})
        station.answering.intake.rewind([line], alone=alone)
        until_quiet(station)
    ours, theirs = station.results(line)
    different = {"entry", "latency_ms"}
    assert {k: v for k, v in ours.items() if k not in different} == {
        k: v for k, v in theirs.items() if k not in different
    }


def test_a_batch_that_the_device_has_no_memory_for_is_halved_with_equal_features(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [engine.prepare(picture(seed)) for seed in range(7)]
    (whole,) = engine.batches(images)
    refused = []

    def small_device(_name: str, images: str) -> None:
        if int(images) > 2:
            refused.append(int(images))
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("worker.engine.failpoint", small_device)
    (halved,) = engine.batches(images)
    assert refused == [7, 3, 4]
    torch.testing.assert_close(halved, whole)


def started_again(station: Station, folder: Path, line: str) -> Station:
    """As its supervisor starts a worker whose device has failed."""
    station.answering.close()
    again = Station(station.client, station.engine, folder, line)
    again.answering.intake.rewind([line], alone=True)
    return again


def has_no_memory_for(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the device fail at batches with an image of this one grey level."""
    real = Engine._extracted

    def extracted(self: Engine, pixels: Tensor) -> PatchMaps:
        if (pixels == level).flatten(1).all(1).any():
            raise torch.OutOfMemoryError("no room")
        return real(self, pixels)

    monkeypatch.setattr(Engine, "_extracted", extracted)


def test_a_device_with_no_memory_for_one_image_ends_the_process_and_costs_no_image(
    station: Station, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in (message(item("0"), item("1")), message(item("2"))):
        station.send(line, batch)
    with monkeypatch.context() as full:
        full.setattr("worker.engine.failpoint", armed("forward:oom:1+"))
        with pytest.raises(torch.OutOfMemoryError):
            until_quiet(station)
    assert (station.results(line), station.letters(line), station.pending(line)) == ([], [], 2)
    station = started_again(station, tmp_path, line)  # and there is memory again
    until_quiet(station)
    assert [result["id"] for result in station.results(line)] == ["0", "1", "2"]
    assert (station.letters(line), station.pending(line)) == ([], 0)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("place", ["worker.engine.failpoint", "worker.line.Line.scores_by"])
def test_a_library_of_the_device_that_fails_ends_the_process_and_costs_no_image(
    station: Station, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, alone: bool
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`")

    for batch in (message(item("0"), item("1")), message(item("2"))):
        station.send(line, batch)
    if alone:
        station.client.xreadgroup(ANSWERING, "station-1", {station.streams(line).images: ">"})
        station.answering.intake.rewind([line], alone=True)
    with monkeypatch.context() as lost:
        lost.setattr(place, fails if place.endswith("failpoint") else lambda _: fails)
        with pytest.raises(DeviceError, match="CUBLAS_STATUS"), device_failures("cuda"):
            until_quiet(station)
    assert (station.results(line), station.letters(line), station.pending(line)) == ([], [], 2)
    assert station.client.hlen(station.streams(line).attempts) == alone  # the one in hand may yet be why
    station = started_again(station, tmp_path, line)
    until_quiet(station)
    assert sorted(result["id"] for result in station.results(line)) == ["0", "1", "2"]
    assert (station.letters(line), station.pending(line)) == ([], 0)


def test_an_image_that_the_device_has_no_memory_for_at_three_starts_is_given_up_and_the_line_goes_on(
    station: Station, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_no_memory_for(255, monkeypatch)
    white = item("white", data=encoded(np.full((40, 48, 3), 255, np.uint8)))
    for batch in (message(item("0"), white, item("1")), message(item("2"))):
        station.send(line, batch)
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            until_quiet(station)
        assert station.letters(line) == []
        station = started_again(station, tmp_path, line)
    until_quiet(station)
    assert sorted(result["id"] for result in station.results(line)) == ["0", "1", "2"]
    (letter,) = station.letters(line)
    assert (letter["id"], letter["reason"], letter["error"]) == ("white", "failed", ENDED)
    assert (station.pending(line), station.client.hlen(station.streams(line).attempts)) == (0, 0)


def test_an_entry_that_cannot_even_be_split_ends_as_one_letter_and_the_others_are_answered(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = message(item("a")), message(item("b"))

    def fails(batch: bytes, limits: LimitSettings) -> list[Image | Rejected]:
        if batch == bad:
            raise MemoryError
        return decode_batch(batch, limits)

    monkeypatch.setattr("worker.answering.opening.decode_batch", fails)
    for batch in (bad, good):
        station.send(line, batch)
    until_quiet(station)
    assert [result["id"] for result in station.results(line)] == ["b"]
    assert [(letter["id"], letter["reason"]) for letter in station.letters(line)] == [("", "failed")]
    assert (station.pending(line), station.client.hlen(station.streams(line).attempts)) == (0, 0)


def test_one_lines_broken_key_stops_that_line_alone(
    client: redis.Redis, engine: Engine, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "FRESH_SECONDS", 60.0)  # a batch is of all that is in hand, however long that takes
    names = [f"{line}-a", f"{line}-b"]
    station = Station(client, engine, tmp_path, *names, unique_ids=4)
    client.set(station.streams(names[0]).seen, "in the way")
    for name in names:
        station.send(name, message(item("a")))
    keepers = dict(station.keepers)
    for _ in range(6):
        station.answering.turn(client, keepers, None)
        for refused in station.answering.refused:  # as the daemon leaves such a line alone for a while
            keepers.pop(refused, None)
    station.answering.finish(client, keepers, 60)
    assert [result["id"] for result in station.results(names[1])] == ["a"]
    assert station.pending(names[0]) == 1
