import json
import subprocess
import sys

import pytest
import redis
from pydantic import SecretStr

from tests.worker.keepers import take
from tests.worker.test_results import publish
from worker import views
from worker.errors import RedisUnreachableError, StateError
from worker.settings import Settings
from worker.streams.line_streams import LineStreams
from worker.streams.state import read_state, tell_unkept

# -- status ------------------------------------------------------------------------------------------------------------


UNTOLD = {
    "problem": None, "stopped": False, "provisional": False, "false_positive_rate": None, "rate_interval": None,
    "progress": None, "outside_share": None, "subspace_change": None, "quarantined": 0, "drift": None,
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


def test_all_pictures_of_a_line_that_no_worker_keeps_wait(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    for _ in range(2):
        client.xadd(streams.images, {"batch": b""})
    client.xgroup_create(streams.images, "another-program", "$")
    assert views.line_status(client, line)["lag"] == 2


def test_a_status_before_the_first_model_has_none_and_no_threshold(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    epoch, *_ = streams.acquire("name#with#hashes#ab", 0)
    streams.commit(epoch, {"phase": "learning", "model": "", "applied_through": "0-0", "threshold": ""})
    status = views.line_status(client, line)
    given = [status[key] for key in ("phase", "model", "threshold", "keeper", "oldest_pending_seconds")]
    assert given == ["learning", None, None, "name#with#hashes", None]


def test_a_problem_stops_a_line_where_it_says_so_or_nobody_keeps_it(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    epoch, *_ = streams.acquire("station-1#ab", 0)
    found = list[tuple[str, bool]]()
    for shown in ({"problem": "no snapshot"}, {"problem": "it went back", "stopped": "it went back"}, {"stopped": ""}):
        streams.show(epoch, shown)
        status = views.line_status(client, line)
        found.append((status["problem"], status["stopped"]))
    assert found == [("no snapshot", False), ("it went back", True), ("it went back", False)]
    streams.client.delete(streams.lease)
    assert views.line_status(client, line)["stopped"] is True
    streams.client.hset(streams.state_key, "problem", "")
    assert views.line_status(client, line)["stopped"] is False


def test_a_line_that_nobody_can_load_says_why_until_it_is_kept(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    tell_unkept(streams, "its version cannot be loaded: it is another backbone's")
    status = views.line_status(client, line)
    assert status["problem"] == "its version cannot be loaded: it is another backbone's"
    assert "unkept" not in status
    assert streams.acquire("station-1#ab", 0)[0]
    tell_unkept(streams, "another worker, which cannot load it, says so")
    assert views.line_status(client, line)["problem"] is None
    streams.client.delete(streams.lease)
    assert views.line_status(client, line)["problem"] is None
    tell_unkept(streams, "said again")
    assert views.line_status(client, line)["problem"] == "said again"
    client.hset(streams.state_key, "epoch", 2)  # by a release that takes nothing away
    assert views.line_status(client, line)["problem"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", "seven"),
        ("epoch", "9" * 11),
        ("epoch", "9" * 5000),
        ("epoch", ""),
        ("applied_through", b"\xff"),
        ("done_through", "yesterday"),
        ("commands_through", "5"),
    ],
)
def test_what_stops_a_worker_in_a_lines_state_is_told_in_its_words_and_hides_nothing_else(
    client: redis.Redis, line: str, field: str, value: str | bytes
) -> None:
    streams = LineStreams(client, line)
    client.hset(streams.state_key, mapping={"phase": "scoring", "progress": "3/7", field: value})
    with pytest.raises(StateError) as caught:
        read_state(streams)
    status = views.line_status(client, line)
    assert (status["problem"], status.get(field)) == (str(caught.value), None)
    assert (status["phase"], status["progress"]) == ("scoring", "3/7")
    assert "HSET" in status["problem"]


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


def test_what_people_look_at_needs_no_torch() -> None:
    code = "import sys, worker.cli, worker.views, worker.results, worker.producer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
