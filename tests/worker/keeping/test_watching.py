"""The threshold follows the results of a line, whoever has written them, and across restarts."""

import json

import msgpack
import numpy as np
import pytest
import torch
from redis import Redis
from structlog.testing import capture_logs

from tests.worker.commanding import limit, look, put_up_for_review, told, trained
from tests.worker.keepers import ENTRIES, MakeKeeper, add, extract, opened
from worker.errors import SnapshotError
from worker.keeping.keeper import Keeper
from worker.keeping.looking import Look
from worker.keeping.watching import MOVED, display_fields, score_bins
from worker.line import CALIBRATING, LEARNING, PAUSED, SCORING
from worker.message import Result, encode_result
from worker.streams.control import send
from worker.streams.line_streams import LineStreams

RISEN = 1.12  # times calibration's scores


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.keeping.looking.REFIT_SNAPSHOTS", 0)


def calibrated(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    """A line that scores, with the scores of 400 images behind its threshold."""
    keeper = trained(make_keeper, streams)
    line = keeper.line
    line.calibration_scores = torch.from_numpy(np.random.default_rng(5).gumbel(2.4, 0.1, 400))
    line.calibration_means = line.calibration_means.repeat(20, 1)
    line.threshold = line.fitted()
    keeper.snapshot()
    look(keeper)  # from here on results are followed
    return keeper


def publish(keeper: Keeper, count: int, seed: int = 0, phase: str = SCORING, model: str = "") -> None:
    base, by = keeper.line.calibration_scores.numpy(), model or keeper.model
    for score in np.random.default_rng(seed).choice(base, count) * RISEN:
        result = Result(keeper.line.name, "1-0", "a", phase, by, float(score), 1.0, False, False, None, 1.0, None, None)
        keeper.streams.client.xadd(keeper.streams.scores, {"result": encode_result(result)})


def test_a_threshold_that_was_tracked_outlasts_the_process(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = calibrated(make_keeper, streams)
    before = limit(keeper)
    publish(keeper, 480)
    look(keeper)
    tracked = limit(keeper)
    assert before * 1.08 < tracked <= before * 1.2
    assert keeper.line.threshold == keeper.line.fitted()
    again = opened(make_keeper(), "station-1#b")
    assert limit(again) == tracked
    assert again.line.threshold == again.line.fitted()
    publish(again, 70, seed=1)
    look(again)
    assert limit(again) == pytest.approx(tracked, rel=0.02)
    assert len(again.line.recent_scores) == 500
    assert limit(again) == pytest.approx(again.line.fitted().value, rel=MOVED)  # what is less is no news


def test_results_that_came_while_nobody_kept_the_line_are_followed_once(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = calibrated(make_keeper, streams)
    publish(keeper, 100)
    look(keeper)
    assert len(keeper.line.recent_scores) == 100
    publish(keeper, 30)
    again = opened(make_keeper(), "station-1#b")
    look(again)
    assert len(again.line.recent_scores) == 130
    look(again)
    assert len(again.line.recent_scores) == 130


def test_what_is_no_result_of_a_scoring_line_is_passed_over(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = calibrated(make_keeper, streams)
    publish(keeper, 3, phase=PAUSED)
    for field, value in {"something": b"else", "result": b"\xc1"}.items():
        streams.client.xadd(streams.scores, {field: value})
    rogues = (b"\x90", b"\x01", b"", b"\x80", scored(float("nan")), scored(-1.0), scored(float("inf")), scored(None))
    for value in (*rogues, scored("high"), scored(True), scored(3.0, None), scored(3.0, 1)):
        streams.client.xadd(streams.scores, {"result": value})
    publish(keeper, 2)
    look(keeper)
    assert len(keeper.line.recent_scores) == 2


def scored(score: object, model: object = "9999999999-9999999999") -> bytes:
    packed: bytes = msgpack.packb({"phase": SCORING, "model": model, "score": score})
    return packed


def test_what_is_followed_is_forgotten_by_a_relearn_and_by_no_pause(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = calibrated(make_keeper, streams)
    publish(keeper, 480)
    look(keeper)
    tracked = limit(keeper)
    assert told(keeper, "pause")[0]
    publish(keeper, 100, phase=PAUSED)
    look(keeper)
    assert told(keeper, "resume")[0]
    assert (len(keeper.line.recent_scores), limit(keeper)) == (480, tracked)
    assert told(keeper, "relearn")[0]
    assert len(keeper.line.recent_scores) == 0


@pytest.mark.parametrize("command", ["normal", "anomalous", "rollback"])
def test_the_threshold_goes_on_from_where_it_was_whatever_a_person_says_of_a_part(
    make_keeper: MakeKeeper, streams: LineStreams, command: str
) -> None:
    keeper = calibrated(make_keeper, streams)
    publish(keeper, 480)
    look(keeper)
    tracked = limit(keeper)
    put_up_for_review(keeper)
    assert told(keeper, "normal", entry="9-9", id="part")[0]
    if command == "anomalous":
        assert "anchors removed" in told(keeper, "anomalous", entry="9-9", id="part")[1]
    if command == "rollback":
        publish(keeper, 200, seed=2)  # what is gone back to has not followed these, nor what comes before it answers
        look(keeper)
        assert told(keeper, "rollback")[0]
    assert (len(keeper.line.recent_scores), limit(keeper)) == (480, tracked)
    publish(keeper, 70, seed=1)
    look(keeper)
    assert limit(keeper) == pytest.approx(tracked, rel=0.02)
    assert limit(keeper) == pytest.approx(keeper.line.fitted().value, rel=MOVED)


def test_results_that_come_before_a_rollback_is_committed_are_not_followed(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = calibrated(make_keeper, streams)

    def refuse(*_: object) -> None:
        raise SnapshotError("not now")

    with monkeypatch.context() as refused:
        refused.setattr(keeper.store, "put", refuse)
        send(streams, "rollback", {"version": keeper.model}, "ann")
        for _ in range(2):
            look(keeper)
            publish(keeper, 70)
    keeper.snapshot()
    look(keeper)
    assert len(keeper.line.recent_scores) == 0


def test_who_answers_by_the_version_before_a_rollback_for_a_while_is_not_followed(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = calibrated(make_keeper, streams)
    before = keeper.model
    assert told(keeper, "rollback", version=before)[0]
    for followed in (5, 10):
        look(keeper)
        publish(keeper, 70, model=before)
        publish(keeper, 5)
        look(keeper)
        assert len(keeper.line.recent_scores) == followed
        assert told(keeper, "rate", rate=0.06)[0]  # another version, of the same bank
        keeper = opened(make_keeper(), "station-1#b")


def test_a_rate_that_is_set_goes_by_the_recent_scores_too(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = calibrated(make_keeper, streams)
    publish(keeper, 480)
    look(keeper)
    tracked = limit(keeper)
    assert told(keeper, "rate", rate=0.06)[0]
    assert limit(keeper) == pytest.approx(tracked, rel=0.03)


def test_versions_for_the_threshold_alone_are_seldom(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.keeping.looking.REFIT_SNAPSHOTS", 10)
    monkeypatch.setattr("worker.keeping.looking.LOOK_SECONDS", 0)
    keeper = calibrated(make_keeper, streams)
    looks, versions = Look(keeper), set[str]()
    for seed in range(6):
        publish(keeper, 80, seed)
        looks([], lambda _: torch.empty(0))
        versions.add(keeper.model)
    assert len(versions) <= 2


def test_a_long_backlog_of_results_is_read_before_the_threshold_moves(
    make_keeper: MakeKeeper, streams: LineStreams, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.keeping.watching.READ", 50)
    monkeypatch.setattr("worker.keeping.watching.PAGES", 2)
    keeper = calibrated(make_keeper, streams)
    before = limit(keeper)
    publish(keeper, 250)
    looks = Look(keeper)
    for _ in range(3):
        assert limit(keeper) == before
        looks._at = looks._track_at = 0.0
        looks([], lambda _: torch.empty(0))
    assert limit(keeper) > before
    assert client.xlen(streams.scores) == 250


@pytest.mark.parametrize("command", ["pause", "relearn"])
def test_the_metric_for_drift_is_zero_while_nobody_watches(
    make_keeper: MakeKeeper, streams: LineStreams, command: str
) -> None:
    keeper = calibrated(make_keeper, streams)
    assert keeper.line.monitor is not None
    keeper.line.monitor.score_drift_ = 3.0

    def drift() -> float | None:
        return keeper.metrics.registry.get_sample_value("mhpc_drift", {"line": streams.line})

    look(keeper)
    assert drift() == 3.0
    told(keeper, command)
    assert drift() == 0.0


def test_calibrations_scores_are_shown_in_bins_from_the_commit_that_has_them(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    written = streams.state()["calibration"]
    bins = json.loads(written)
    scores = keeper.line.calibration_scores
    assert (sum(bins["counts"]), len(bins["counts"])) == (len(scores), 5)
    assert (bins["low"], bins["high"]) == pytest.approx((float(scores.min()), float(scores.max())), rel=1e-5)
    assert len(written) < 400
    assert told(keeper, "relearn")[0]
    assert streams.state()["calibration"] == ""


@pytest.mark.parametrize(("scores", "count"), [(torch.zeros(20), 5), (torch.rand(100_000) * 1e6, 24)])
def test_bins_are_few_whatever_the_scores(scores: torch.Tensor, count: int) -> None:
    bins = json.loads(score_bins(scores.double()))
    assert (sum(bins["counts"]), len(bins["counts"])) == (len(scores), count)
    assert bins["low"] < bins["high"]
    assert len(json.dumps(bins)) < 400


def test_the_log_tells_a_change_of_phase_with_the_threshold_as_a_number(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    with capture_logs() as logged:
        keeper = trained(make_keeper, streams)
    phases = [(event["was"], event["now"], event["threshold"]) for event in logged if event["event"] == "phase"]
    assert keeper.line.threshold is not None
    assert phases == [
        (LEARNING, CALIBRATING, None),
        (CALIBRATING, SCORING, keeper.line.threshold.value),
    ]


def test_a_rate_that_a_command_set_over_the_configured_one_is_told_when_the_line_is_opened(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    told(keeper, "rate", rate=0.4)
    with capture_logs() as logged:
        opened(make_keeper(), "station-1#b")
    (said,) = (entry for entry in logged if "false-positive rate" in entry["event"])
    assert (said["log_level"], said["rate"], said["configured"]) == ("warning", 0.4, 0.05)
    assert "rate 0.05" in said["event"]
    again = opened(make_keeper(), "station-1#c")
    assert told(again, "rate", rate=0.05)[0]
    assert again.line.rate is None  # the configured one holds again, whatever it will be
    with capture_logs() as logged:
        opened(make_keeper(), "station-1#d")
    assert [entry for entry in logged if "false-positive rate" in entry["event"]] == []


def test_parts_set_aside_at_the_end_of_learning_are_counted_with_those_of_the_guard(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = opened(make_keeper(every_images=1000))
    keeper.line.learner.images_quarantined_ = 1
    add(streams, *ENTRIES[:3])
    keeper.learn(extract, 3)
    monkeypatch.setattr(keeper.line.learner, "freeze", lambda: torch.tensor([5, 6]))
    assert told(keeper, "calibrate")[0]
    assert keeper.line.phase == CALIBRATING
    assert streams.state()["quarantined"] == "3"
    again = opened(make_keeper(), "station-1#b")
    assert display_fields(again.line, again.line.serving)["quarantined"] == "3"
    assert told(again, "relearn")[0]
    assert streams.state()["quarantined"] == "0"
