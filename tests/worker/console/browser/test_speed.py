"""How soon the page is there, how soon a result is on it, and what it holds after many of them."""

import uuid
from itertools import count

import pytest
from playwright.sync_api import Page, expect

from tests.worker.console.browser.conftest import OpenPage
from tests.worker.console.browser.plant import Plant
from tests.worker.console.site import MODEL, Filled, fastest
from worker.message import Result, encode_result

RESULTS, BATCH = 10_000, 500  # the console passes over what is more than 1,000 behind


@pytest.fixture
def filled(plant: Plant) -> Filled:
    """A line with as many results as the page shows."""
    filled = Filled(plant.client, f"filled-{uuid.uuid4().hex[:6]}")
    publish(filled, 0, 600)
    plant.known(filled.line)
    return filled


def publish(filled: Filled, start: int, stop: int) -> str:
    """Results with the ids start to stop - 1; returns the last id."""
    pipeline = filled.client.pipeline(transaction=False)
    for i in range(start, stop):
        score = 3.0 if i % 50 == 0 else 1.0 + i % 7 / 10
        result = Result(
            filled.line, f"{i}-0", f"part-{i}", "scoring", MODEL, score, 2.0, score > 2, False, 1.7e9, 5.0, None, None
        )
        pipeline.xadd(filled.streams.scores, {"result": encode_result(result)})
    pipeline.execute()
    return f"part-{stop - 1}"


def newest(page: Page, identity: str) -> float:
    """When the newest result on the page has become this one, in milliseconds since 1970."""
    script = "id => document.querySelector('#results tbody a')?.textContent === id && Date.now()"
    seen: float = page.wait_for_function(script, arg=identity, polling=10).json_value()
    return seen


@pytest.mark.parametrize("path", ["/", "/lines/{line}"])
def test_it_loads_within_a_second(plant: Plant, open_page: OpenPage, filled: Filled, path: str) -> None:
    page = open_page(path.format(line=filled.line))

    def load() -> float:
        page.reload()
        expect(page.locator("#live-text")).to_have_text("live")
        if "{line}" in path:
            newest(page, "part-599")
        live: float = page.evaluate("performance.now()") / 1000
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
        assert 0 < loaded <= live
        return live

    assert fastest(load) < 1


def test_a_result_is_on_the_page_within_a_second(open_page: OpenPage, filled: Filled) -> None:
    page = open_page(f"/lines/{filled.line}")
    newest(page, "part-599")
    names = (f"at-once-{i}" for i in count())

    def publish_one() -> float:
        key = filled.result(name := next(names))
        return (newest(page, name) - int(key.partition("-")[0])) / 1000

    assert fastest(publish_one) < 1


def test_after_ten_thousand_results_it_is_as_small_as_before(open_page: OpenPage, filled: Filled) -> None:
    page = open_page(f"/lines/{filled.line}")
    newest(page, "part-599")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def held() -> dict[str, float]:
        devtools.send("HeapProfiler.collectGarbage")
        metrics = devtools.send("Performance.getMetrics")["metrics"]
        return {metric["name"]: metric["value"] for metric in metrics}

    before = held()
    for start in range(600, RESULTS + 600, BATCH):
        newest(page, publish(filled, start, start + BATCH))
    after = held()
    assert after["JSHeapUsedSize"] < 100e6
    assert after["JSHeapUsedSize"] < 1.5 * before["JSHeapUsedSize"] + 1e6
    assert after["Nodes"] < 1.5 * before["Nodes"] + 1000
