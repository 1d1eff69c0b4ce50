"""Workers with different settings for one line, of one fleet, of two, or of none."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import redis
import torch
from structlog.testing import capture_logs

from tests.worker.commanding import features, limit, told, trained, version
from tests.worker.helpers import eventually
from tests.worker.keepers import MakeKeeper, opened
from tests.worker.playing import answered, send
from tests.worker.turning import Run, get
from worker.alike import FIELD, Alike, digest
from worker.daemon import Worker
from worker.errors import SnapshotError
from worker.keeping.keeper import Keeper
from worker.keeping.looking import Look
from worker.line import Line
from worker.metrics import Metrics
from worker.settings import CalibrationSettings, LearningSettings, LineConfig, ScoringSettings
from worker.streams.line_streams import LineStreams


@pytest.fixture(autouse=True)
def _sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alike.LOOK_SECONDS", "fleet.LOOK_SECONDS", "keeping.keeper.ACQUIRE_SECONDS"):
        monkeypatch.setattr(f"worker.{name}", 0.2)


def differs(worker: Worker, line: str) -> float | None:
    return worker.metrics.registry.get_sample_value("mhpc_line_settings_differ", {"line": line})


@pytest.mark.parametrize("fleet", [False, True])
def test_a_line_that_is_kept_by_other_settings_is_as_its_keeper_is_told_and_the_others_say_so(
    run: Run, settings: Any, client: redis.Redis, line: str, fleet: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    def worker(name: str, images: int) -> Worker:
        return run(settings(line, worker={"name": name, "fleet": fleet}, learning={"images": images}))

    first = worker(f"{line}-1", 16)
    eventually(lambda: first.keepers[line].epoch)
    send(client, line, 1, 8)
    answered(client, line, 8)
    alike, other = worker(f"{line}-2", 16), worker(f"{line}-3", 99)
    eventually(lambda: differs(other, line) == 1 and differs(alike, line) == 0)
    assert differs(first, line) == 0
    assert eventually(lambda: get(other, "/readyz") == (200, "ok\n"))  # it answers all the same
    send(client, line, 9, 40)
    answered(client, line, 40)
    eventually(lambda: LineStreams(client, line).state()["phase"] != "learning")
    assert first.keepers[line].line.learner.images_seen_ == 16
    said = [text for text in capfd.readouterr().out.splitlines() if "kept by other settings" in text]
    assert len(said) == 1
    assert f"keeper={line}-1" in said[0]


def test_all_that_a_keeper_goes_by_counts_and_a_workers_own_weight_does_not() -> None:
    parts: dict[str, Any] = {
        "learning": LearningSettings(),
        "calibration": CalibrationSettings(),
        "scoring": ScoringSettings(),
    }
    one = LineConfig(name="press-3", bank_size=60, **parts)
    assert digest(one) == digest(one.model_copy(update={"weight": 2.0}))
    others: list[dict[str, Any]] = [
        {"bank_size": 61},
        {"learning": LearningSettings(images=7)},
        {"calibration": CalibrationSettings(false_positive_rate=0.5)},
        {"scoring": ScoringSettings(top_k=7)},
    ]
    assert len({digest(one), *(digest(one.model_copy(update=other)) for other in others)}) == 5


def test_a_worker_that_restarts_with_other_settings_does_not_differ_from_itself(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.alike.LOOK_SECONDS", 0.0)
    Look(opened(make_keeper()), {FIELD: "before"})([], features)  # and is killed
    again, alike = make_keeper(), Alike(Metrics())
    alike.digests = {streams.line: "after"}
    with capture_logs() as logged:
        assert not alike.is_due(again)  # it has not tried for the lease yet
        again.acquire("station-2#b")
        assert not again.epoch
        alike.look(again)
        assert told_of(logged) == ["station-1"]  # that is another
        logged.clear()
        alike.look(opened(again := make_keeper(), "station-1#b"))
        again.lose("Redis is away")
        alike.look(again)  # the lease is its own, though it has shown nothing yet
        streams.client.delete(streams.lease)
        alike.look(again)
    assert told_of(logged) == []
    assert alike.metrics.registry.get_sample_value("mhpc_line_settings_differ", {"line": streams.line}) == 0


def test_who_does_not_keep_a_line_answers_by_its_keepers_threshold_whatever_rate_it_is_told(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper, other = trained(make_keeper, streams), with_rate(make_keeper(), 0.4)
    assert other.follow()
    assert (version(other), limit(other)) == (version(keeper), limit(keeper))
    assert told(keeper, "rate", rate=0.2)[0]
    assert other.follow()
    assert (version(other), limit(other)) == (version(keeper), limit(keeper))


def test_who_takes_a_line_over_with_another_rate_makes_a_version_of_its_threshold(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    before, threshold = keeper.model, limit(keeper)
    other = opened(with_rate(make_keeper(), 0.4), "station-1#b")
    assert before < other.model
    assert limit(other) < threshold
    state = streams.state()
    assert (state["model"], float(state["threshold"]), state["rate"]) == (other.model, limit(other), "0.4")
    assert keeper.follow()
    assert limit(keeper) == limit(other)
    again = opened(with_rate(make_keeper(), 0.4), "station-1#c")
    assert (again.model, limit(again)) == (other.model, limit(other))  # once
    assert told(again, "rollback", version=before)[0]
    assert limit(again) == limit(other)


def test_a_threshold_that_cannot_be_stored_yet_is_answered_by_once_it_is(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = trained(make_keeper, streams)
    other = with_rate(make_keeper(), 0.4)

    def refuse(*_: object) -> None:
        raise SnapshotError("not now")

    with monkeypatch.context() as refused:
        refused.setattr(other.store, "put", refuse)
        opened(other, "station-1#b")
        other.epoch, other._acquire_at = 0, 0.0  # as where Redis fails as it is opened: it is opened again as it is
        opened(other, "station-1#b")
    assert (version(other), limit(other)) == (keeper.model, limit(keeper))
    assert float(streams.state()["threshold"]) == limit(keeper)
    other.snapshot()
    assert version(other) > keeper.model
    assert float(streams.state()["threshold"]) == limit(other) < limit(keeper)


def with_rate(keeper: Keeper, rate: float) -> Keeper:
    """A worker that is told another false-positive rate."""
    calibration = CalibrationSettings(images=20, false_positive_rate=rate)
    config = keeper.line.config.model_copy(update={"calibration": calibration})
    keeper.make_line = lambda: Line(config, 0.99, torch.device("cpu"))
    return keeper


def told_of(logged: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["keeper"] for entry in logged if "other settings" in entry["event"]]
