"""A whole run, small; what is checked is that the figures hang together, never how fast this machine is."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from worker.bench import run, station
from worker.bench.latency import latencies
from worker.bench.load import Flow
from worker.bench.options import BenchOptions
from worker.cli.app import app
from worker.demo.processes import Child, ChildEndedError, spawn
from worker.errors import ConfigurationError, WorkerError

SECONDS = 0.5
pytestmark = pytest.mark.timeout(1200)  # the fixture starts a worker again and again


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for one another crawl where tests run side by side
        patch.setattr(run, "PICTURES", 64)
        patch.setattr(run, "WARM_IMAGES", 24)
        patch.setattr(run, "CALIBRATED", 24)
        patch.setattr(station, "SETTLE_SECONDS", 0.1)
        measured, flows = watched(patch)
        options = ["--json", str(file), "--seconds", str(SECONDS), "--bank-size", "500", "--lines", "2"]
        result = CliRunner().invoke(app, ["bench", "--device", "cpu", *options], catch_exceptions=False)
    assert result.exit_code == 0
    assert "bare loop" in result.stdout
    figures: dict[str, Any] = json.loads(file.read_text())
    return {**figures, "measured": measured, "flows": flows}


def watched(patch: pytest.MonkeyPatch) -> tuple[list[tuple[float, int]], list[Flow]]:
    """Of each measurement of latencies the seconds, by Redis' clock, and the images; and the flows that keep times."""
    measured, flows = list[tuple[float, int]](), list[Flow]()
    cameras = station.Station.cameras

    def with_cameras(self: station.Station, *asked: Flow) -> Any:
        flows.extend(flow for flow in asked if flow.rate)
        return cameras(self, *asked)

    def counted(client: Any, line: str, since: int, until: int) -> list[int]:
        waited = latencies(client, line, since, until)
        measured.append(((until - since) / 1000, len(waited)))
        return waited

    patch.setattr(station.Station, "cameras", with_cameras)
    patch.setattr(station, "latencies", counted)
    return measured, flows


@pytest.mark.parametrize("name", ["scoring", "learning"])
def test_a_phases_figures_hang_together(found: dict[str, Any], name: str) -> None:
    phase, forward = found[name], found["forward"]["images_per_second"]
    assert phase["seconds"] >= SECONDS
    assert phase["images_per_second"] == pytest.approx(phase["images"] / phase["seconds"])
    assert phase["ratio"] == pytest.approx(phase["images_per_second"] / forward)
    assert phase["ratio_alone"] >= phase["ratio"]
    assert phase["ratio_floor"] == pytest.approx(phase["images_per_second"] / phase["floor"]["images_per_second"])
    assert sum(phase["shares"].values()) == pytest.approx(1)
    assert sum(phase["stages"].values()) + phase["outside"] == pytest.approx(phase["seconds"])
    assert phase["cpu_seconds"].keys() == {"worker", "redis", "producer"}
    assert phase["cpu_seconds"]["worker"] > 0


def test_learning_went_on_with_a_full_bank_and_scoring_with_a_reduced_one(found: dict[str, Any]) -> None:
    assert 500 <= found["learning"]["anchors"] <= 625
    assert found["scoring"]["anchors"] == 500
    assert found["learning"]["stages"]["learn"] > 0
    assert found["scoring"]["stages"]["score"] > 0


def test_latencies_are_of_what_was_asked_for_and_for_so_long(found: dict[str, Any]) -> None:
    half = found["half_load"]
    assert half["asked_images_per_second"] == pytest.approx(found["scoring"]["images_per_second"] / 2)
    rates = [half["asked_images_per_second"], run.LIGHT_RATE, run.LIGHT_RATE]
    assert [(flow.rate, flow.per_entry) for flow in found["flows"]] == [(pytest.approx(rate), 1) for rate in rates]
    wanted = [SECONDS, run.LIGHT_WINDOWS * SECONDS, run.LIGHT_WINDOWS * SECONDS]
    assert all(window > seconds - 0.002 for (window, _), seconds in zip(found["measured"], wanted, strict=True))
    counted = [half["latency"], found["flood"]["alone"], found["flood"]["flooded"]]
    assert [latency["images"] for latency in counted] == [images for _, images in found["measured"]]
    assert all(latency["images"] > 0 for latency in counted)
    assert half["latency"]["p50_ms"] <= half["latency"]["p95_ms"] <= half["latency"]["p99_ms"]
    assert half["limit_ms"] == pytest.approx(half["max_wait_ms"] + 2 * half["batch_ms"])


def test_start_and_memory_are_told(found: dict[str, Any]) -> None:
    start = found["start"]
    assert start["beyond"] == pytest.approx(start["first_result"] - start["loading"])
    assert min(found["memory"].values()) > 0


def test_more_lines_are_compared_with_one(found: dict[str, Any]) -> None:
    (lines,) = found["lines"]
    assert lines["lines"] == 2
    assert lines["to_one"] == pytest.approx(lines["images_per_second"] / lines["one_images_per_second"])


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = list[Child]()

    def spawned(*args: Any) -> Child:
        children.append(spawn(*args))
        return children[-1]

    monkeypatch.setattr(run, "CHILD_SECONDS", 0.0)
    monkeypatch.setattr(run, "spawn", spawned)
    with pytest.raises(WorkerError, match="took over 0 s; lower --seconds"):
        run.measure_loading(tmp_path)
    assert [child.process.returncode for child in children] == [-signal.SIGTERM]


def test_a_backbone_that_cannot_be_used_ends_the_run_with_its_exit_code() -> None:
    with pytest.raises(ChildEndedError, match="layer9") as raised:
        run.run_bench(BenchOptions(layers=("layer9",), device="cpu"))
    assert raised.value.exit_code == 4


def test_weights_that_do_not_fit_the_backbone_are_found_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match='weights "bundled" are for backbone "tiny" alone'):
        run.run_bench(BenchOptions(backbone="resnet18", weights="bundled"))
