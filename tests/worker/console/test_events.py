"""What is told live, and that it is told soon."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.console.site import Filled, Site, fastest, first
from tests.worker.helpers import encoded, eventually, picture
from worker.console import events
from worker.console.lines import Lines
from worker.message import Image
from worker.streams.control import Command, Reply, encode_reply, send


def test_a_looker_is_told_what_there_is_and_then_what_is_new(site: Site, filled: Filled) -> None:
    filled.state(calibration='{"low":0.5,"high":1.5,"counts":[1,2,1]}')
    known = [filled.result(f"a{number}") for number in range(3)]
    with site.events(f"/lines/{filled.line}/events") as told:
        assert [point[0] for point in first(told, "points")] == known
        status = first(told, "status")
        assert (status["state"], status["threshold"], status["models"]) == ("scoring", 2.0, ["0000000001-0000000002"])
        assert first(told, "calibration") == {"low": 0.5, "high": 1.5, "counts": [1, 2, 1]}
        assert first(told, "review") == []
        key = filled.result("new", 5.0)
        ((new, _, identity, score, threshold, anomalous, latency),) = first(told, "points")
        assert (new, identity, score, threshold, anomalous, latency) == (key, "new", 5.0, 2.0, True, 12.5)


def test_a_result_is_told_soon(site: Site, filled: Filled) -> None:
    names = map(str, count())
    with site.events(f"/lines/{filled.line}/events") as told:
        assert first(told, "points") == []
        first(told, "journal")

        def publish_one() -> float:
            sent = time.monotonic()
            filled.result(name := next(names))
            assert first(told, "points")[0][2] == name
            return time.monotonic() - sent

        assert fastest(publish_one) < 1


def test_a_part_that_is_flagged_comes_into_the_gallery_and_one_that_is_trimmed_leaves_it(
    site: Site, filled: Filled
) -> None:
    first_key = filled.flagged("first", 3.0)
    with site.events(f"/lines/{filled.line}/events") as told:
        (part,) = first(told, "review")
        assert (part["key"], part["id"], part["ratio"], part["why"]) == (first_key, "first", 1.5, "anomalous")
        second = filled.flagged("second", 8.0)
        assert [part["key"] for part in first(told, "review")] == [second, first_key]
        filled.client.xdel(filled.streams.review, first_key)
        assert [part["key"] for part in first(told, "review")] == [second]
        set_aside = filled.reviewed(Image("third", "png", encoded(picture())), None, "quarantined")
        part, _ = first(told, "review")
        assert (part["key"], part["why"], part["times"]) == (set_aside, "quarantined", "set aside")


def test_what_the_line_is_told_is_shown_with_who_and_what_came_of_it(site: Site, filled: Filled) -> None:
    with site.events(f"/lines/{filled.line}/events") as told:
        assert first(told, "journal") == []
        entry = send(filled.streams, "rate", {"rate": 0.02}, "ann")
        (asked,) = first(told, "journal")
        assert (asked["by"], asked["name"], asked["args"], asked["ok"]) == ("ann", "rate", "0.02", None)
        assert asked["text"] == "no answer yet"
        filled.put("replies", reply=encode_reply(Command(entry, "rate", {}, "ann"), Reply(True, "threshold 1.9")))
        (answered,) = first(told, "journal")
        assert (answered["ok"], answered["text"]) == (True, "threshold 1.9")


def test_all_lines_are_told_with_their_speed(site: Site, filled: Filled) -> None:
    with site.events("/events") as told:
        first(told, "fleet")

        def speed() -> Any:
            filled.result()  # before each look: between two that are far apart, what came says nothing of the speed
            rows = {row["line"]: row for row in first(told, "fleet")}
            return rows[filled.line]["texts"]["per_second"] not in ("–", "0.0")  # noqa: RUF001 - the dash of an empty cell

        eventually(speed)


def test_a_name_that_no_line_can_have_hides_no_other(site: Site, filled: Filled) -> None:
    strange = [b"mhpc:{\xff}:images", b"mhpc:{<b>}:images", b"mhpc:{UPPER}:images"]
    for key in strange:
        filled.client.xadd(key, {"batch": b""})
    try:
        with site.events("/events") as told:
            lines = [row["line"] for row in first(told, "fleet")]
    finally:
        filled.client.delete(*strange)
    assert filled.line in lines
    assert "UPPER" not in lines


def test_who_is_behind_by_much_goes_on_at_the_newest(
    site: Site, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.console.recent.READ", 10)
    monkeypatch.setattr("worker.console.recent.PAGES", 2)
    with site.events(f"/lines/{filled.line}/events") as told:
        assert first(told, "points") == []
        last = [filled.result(str(number)) for number in range(100)][-1]
        eventually(lambda: last in [point[0] for point in first(told, "points")])


def test_who_still_looks_is_told_though_the_line_was_let_go(
    site: Site, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.console.lines.OPENED_SECONDS", -1)
    with site.events(f"/lines/{filled.line}/events") as told:
        assert first(told, "points") == []
        assert site.get(f"/lines/{filled.line}").status_code == 200, "which asks for it anew"
        key = filled.result()
        assert [point[0] for point in first(told, "points")] == [key]


def test_too_many_lookers_are_told_so_and_come_in_when_one_leaves(
    open_site: Callable[..., Site], filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOKERS", 1)
    site, path = open_site(), f"/lines/{filled.line}/events"

    def beginning() -> str:
        with site.browser.stream("GET", path) as answer:
            assert answer.status_code == 200, "a browser says of any other that the console does not answer"
            return next(answer.iter_text())

    with site.events(path) as told:
        first(told, "points")
        assert beginning() == f'retry: 15000\nevent: away\ndata: "{events.TOO_MANY}"\n\n'
    eventually(lambda: beginning().startswith("event: points"))


def test_however_many_come_at_once_no_more_than_allowed_are_let_in(
    open_site: Callable[..., Site], filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOKERS", 3)
    exists, all_asked, all_here = Lines._exists, Barrier(12), Barrier(12)

    def asked_for(lines: Lines, name: str) -> bool:
        all_asked.wait(60)  # before the first of them is answered
        return exists(lines, name)

    monkeypatch.setattr(Lines, "_exists", asked_for)
    site, path = open_site(), f"/lines/{filled.line}/events"

    def told_first(_: int) -> str:
        with httpx.stream("GET", site.url + path, timeout=60) as answer:
            texts = answer.iter_text()  # let go, it would close the connection, and leave its seat to the next
            beginning = next(texts)
            all_here.wait(60)
        return beginning.partition("\n")[0]

    with ThreadPoolExecutor(12) as pool:
        assert sorted(pool.map(told_first, range(12))) == 3 * ["event: points"] + 9 * ["retry: 15000"]


def test_an_outage_is_told_and_outlasted(
    open_site: Callable[..., Site], private_redis: PrivateRedis, line: str
) -> None:

    site = open_site(redis={"url": private_redis.url})
    filled = Filled(redis.Redis.from_url(private_redis.url, protocol=2), line)
    filled.result("before")
    with site.events(f"/lines/{line}/events") as told:
        assert first(told, "points")[0][2] == "before"
        private_redis.kill()
        assert "Redis is away" in first(told, "away")
        page = site.get("/")
        assert page.status_code == 503
        assert "Redis is away" in page.text
        assert "data-retry" in page.text
        assert site.get("/readyz").status_code == 503
        assert site.get("/healthz").status_code == 200
        assert site.tell(line, "pause").status_code == 503
        private_redis.start()
        filled = Filled(redis.Redis.from_url(private_redis.url, protocol=2), line)
        while first(told, "away"):
            pass  # the outage may be told in several words
        filled.result("after")
        assert first(told, "points")[0][2] == "after"
    assert site.get("/").status_code == 200
    assert site.get("/readyz").text == "ok\n"


def test_a_passwords_file_that_went_away_is_told_and_the_page_goes_on_when_it_is_there_again(
    open_site: Callable[..., Site], private_redis: PrivateRedis, line: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    site = open_site(redis={"url": private_redis.url, "username": "default", "password_file": str(secret)})
    with site.events("/events") as told:
        assert "redis.password_file" in first(told, "away")
        page = site.get("/")
        assert (page.status_code, "cannot be read" in page.text) == (503, True)
        assert site.get("/readyz").status_code == 503
        secret.write_text("any: this server's default user needs none\n")
        first(told, "fleet")
    assert site.get("/").status_code == 200
