"""Which lines there are costs little to know, whatever else lies in Redis."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from tests.worker.console.site import Filled, Site, first, unanswered
from worker.console.lines import Lines
from worker.console.recent import SPARK
from worker.console.source import Source
from worker.settings import RedisSettings
from worker.views import known_lines, line_status

FOREIGN = 3000


@pytest.fixture
def foreign_keys(client: redis.Redis, line: str) -> Iterator[None]:
    """Keys of somebody else, in the same Redis."""
    keys = [f"foreign:{line}:{number}" for number in range(FOREIGN)]
    client.mset(dict.fromkeys(keys, "x"))
    yield
    client.delete(*keys)


def scans(client: Any) -> int:
    """SCAN calls that the server ever had."""
    counted = client.info("commandstats").get("cmdstat_scan", {"calls": 0})
    return int(counted["calls"])


@pytest.mark.usefixtures("foreign_keys")
def test_lines_are_found_among_many_foreign_keys_in_few_calls(client: redis.Redis, filled: Filled) -> None:
    before = scans(client)
    assert filled.line in known_lines(client)
    assert scans(client) - before < FOREIGN / 100


def test_no_key_is_looked_for_but_a_lines_own_once_its_name_is_asked_for(
    open_site: Callable[..., Site], filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.console.lines.NAMES_SECONDS", 3600)
    site = open_site()
    assert filled.line in site.get("/").text
    later = Filled(filled.client, f"{filled.line}-later")
    before = scans(filled.client)
    assert site.get("/").status_code == 200
    assert site.get(f"/lines/{later.line}").status_code == 200
    assert site.get(f"/lines/{filled.line}-never").status_code == 404
    assert site.get("/readyz").text == "ok\n"
    with site.events(f"/lines/{later.line}/events") as told:
        first(told, "journal")
    with site.events("/events") as told:
        first(told, "fleet")
        first(told, "fleet")
    assert scans(filled.client) == before


def test_what_waits_is_as_old_as_redis_says_whatever_this_machines_clock_says(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    unanswered(filled)
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 86_400)
        oldest = line_status(filled.client, filled.line)["oldest_pending_seconds"]
    assert 0 <= oldest < 3600


@pytest.fixture
def lines(redis_url: str) -> Lines:
    return Lines(Source(RedisSettings(url=SecretStr(redis_url))), [])


def test_the_list_of_lines_keeps_few_results_of_each_and_a_lines_own_pages_many(lines: Lines, filled: Filled) -> None:
    for _ in range(SPARK + 10):
        filled.result()
    opened = lines.watched(filled.line)
    assert len(opened.recent.get().points) == SPARK + 10
    (listed,) = (watched for watched in lines.all.get() if watched.name == filled.line)
    assert len(listed.recent.get().points) == SPARK
    assert lines.watched(filled.line) is opened


@pytest.mark.parametrize("look", [lambda lines, other: lines.all.get(), lambda lines, other: lines.watched(other)])
def test_what_nobody_asks_for_any_more_is_let_go(
    lines: Lines, filled: Filled, monkeypatch: pytest.MonkeyPatch, look: Callable[[Lines, str], object]
) -> None:
    other = Filled(filled.client, f"{filled.line}-other")
    opened = lines.watched(filled.line)
    opened.recent.get()
    look(lines, other.line)
    assert lines.watched(filled.line) is opened, "not at once"
    monkeypatch.setattr("worker.console.lines.OPENED_SECONDS", -1)
    gone = weakref.ref(opened)
    del opened
    look(lines, other.line)
    gc.collect()
    assert gone() is None


def test_of_many_lines_that_are_opened_those_asked_for_last_are_kept(
    lines: Lines, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.console.lines.OPENED", 2)
    names = [Filled(filled.client, f"{filled.line}-{number}").line for number in range(3)]
    first, second, third = (lines.watched(name) for name in names)
    first.recent.get()
    lines.all.get()
    assert lines.watched(names[0]) is first
    assert lines.watched(names[2]) is third
    assert lines.watched(names[1]) is not second
