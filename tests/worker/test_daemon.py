from typing import Any

import redis

from tests.worker.helpers import eventually, item, message
from tests.worker.keepers import take
from tests.worker.playing import answered, in_phase, results, send
from tests.worker.station import stained
from tests.worker.test_metrics import EXPECTED
from tests.worker.turning import Run, get
from worker.line import CALIBRATING, LEARNING, SCORING
from worker.streams.control import send as command
from worker.streams.control import wait_for_reply
from worker.streams.line_streams import ANSWERING, LineStreams
from worker.streams.line_streams import LEARNING as LEARNING_GROUP

# -- at work -----------------------------------------------------------------------------------------------------------


def test_a_line_learns_calibrates_and_scores_and_every_image_has_one_result(
    run: Run, settings: Any, client: redis.Redis, line: str
) -> None:
    worker = run(settings(line))
    send(client, line, 1, 36)
    eventually(lambda: in_phase(client, line, SCORING))
    send(client, line, 37, 40)
    found = answered(client, line, 40)
    assert [result["id"] for result in found] == [str(number) for number in range(1, 41)]
    assert {result["phase"] for result in found} <= {LEARNING, CALIBRATING, SCORING}
    for result in found[-4:]:
        assert result["phase"] == SCORING
        assert result["threshold"] == float(LineStreams(client, line).state()["threshold"])
        assert result["model"] == LineStreams(client, line).state()["model"]
    streams = LineStreams(client, line)
    assert streams.backlog(ANSWERING).pending == 0
    eventually(lambda: streams.backlog(LEARNING_GROUP).pending == 0)
    assert worker.keepers[line].line.learner.images_seen_ == 16
    assert len(worker.keepers[line].line.calibration_scores) == 20


def test_a_process_answers_what_an_earlier_one_was_given_and_left(
    run: Run, settings: Any, client: redis.Redis, line: str
) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    send(client, line, 1, 12)
    take(streams, 2)
    run(settings(line))
    assert [result["id"] for result in answered(client, line, 12)] == [str(number) for number in range(1, 13)]
    assert streams.backlog(ANSWERING).pending == 0


def test_several_lines_work_beside_each_other(run: Run, settings: Any, client: redis.Redis, line: str) -> None:
    names = [f"{line}-{i}" for i in range(3)]
    run(settings(*names))
    for name in names[:2]:
        send(client, name, 1, 36)
    for name in names[:2]:
        eventually(lambda name=name: in_phase(client, name, SCORING))  # type: ignore[misc]  # binds the loop's
        answered(client, name, 36)
    assert results(client, names[2]) == []


def test_every_metric_is_served_and_says_what_happened(run: Run, settings: Any, client: redis.Redis, line: str) -> None:
    worker = run(settings(line))
    send(client, line, 1, 40)
    answered(client, line, 40)
    eventually(lambda: in_phase(client, line, SCORING))
    text = get(worker, "/metrics")[1]
    assert [name for name in EXPECTED if f"\n# TYPE {name}" not in text] == []
    sample = worker.metrics.registry.get_sample_value

    def seen() -> float:
        return sum(sample("mhpc_images_total", {"line": line, "outcome": o}) or 0 for o in ("scored", "unscored"))

    eventually(lambda: seen() == 40)
    eventually(lambda: sample("mhpc_line_phase", {"line": line, "phase": SCORING}) == 1)
    assert seen() == 40
    assert eventually(lambda: sample("mhpc_threshold", {"line": line}))
    for name in ("stream_lag_entries", "pending_entries", "oldest_pending_seconds"):
        assert f'\nmhpc_{name}{{line="{line}"}} ' in eventually(lambda: get(worker, "/metrics")[1])


def test_the_probes_are_well_while_all_is_well(run: Run, settings: Any, line: str) -> None:
    worker = run(settings(line))
    assert get(worker, "/healthz") == (200, "ok\n")
    assert eventually(lambda: get(worker, "/readyz")[0] == 200)
    assert get(worker, "/readyz") == (200, "ok\n")


def test_a_paused_line_goes_on_answering(run: Run, settings: Any, client: redis.Redis, line: str) -> None:
    worker = run(settings(line))
    send(client, line, 1, 36)
    eventually(lambda: in_phase(client, line, SCORING))
    answered(client, line, 36)
    streams = LineStreams(client, line)
    assert wait_for_reply(streams, command(streams, "pause", {}, "ann"), 30) is not None
    send(client, line, 37, 44)
    found = answered(client, line, 44)
    assert {result["phase"] for result in found[36:]} == {"paused"}
    assert all(result["score"] is not None and result["threshold"] is not None for result in found[36:])
    assert get(worker, "/readyz") == (200, "ok\n")
    assert worker.metrics.registry.get_sample_value("mhpc_line_phase", {"line": line, "phase": "paused"}) == 1


def test_a_part_set_aside_by_a_person_is_learned_by_the_running_worker(
    run: Run, settings: Any, client: redis.Redis, line: str
) -> None:
    run(settings(line))
    send(client, line, 1, 36)
    eventually(lambda: in_phase(client, line, SCORING))
    streams = LineStreams(client, line)
    client.xadd(streams.images, {"batch": message(item("strange", data=stained(7)))})
    strange = answered(client, line, 37)[-1]
    assert strange["anomalous"]
    reply = wait_for_reply(streams, command(streams, "normal", {"entry": strange["entry"], "id": "strange"}, "ann"), 30)
    assert reply is not None
    assert reply.ok, reply.text
    client.xadd(streams.images, {"batch": message(item("again", data=stained(7)))})
    again = answered(client, line, 38)[-1]
    assert (again["id"], again["anomalous"]) == ("again", False)
    assert again["model"] > strange["model"]


# -- when Redis is not what it was -------------------------------------------------------------------------------------
