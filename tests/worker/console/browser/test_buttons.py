"""Every button: it asks once, shows what the keeper said, and is logged with who and when; and the keys for review."""

import json
import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.worker.console.browser.conftest import OpenPage, live
from tests.worker.console.browser.plant import Plant
from tests.worker.helpers import encoded, eventually, picture
from worker.message import Image
from worker.streams.review import review_part

BUTTONS = [  # in an order in which each can be done; what is typed; the answer's beginning
    ("rate", "0.1", "false-positive rate 0.1, threshold"),
    ("pause", "", "paused in phase scoring"),
    ("resume", "", "goes on in phase scoring"),
    ("rollback", "", ""),
    ("rollback", "no-such-version", "Refused: "),
    ("calibrate", "", "calibrates on the next 24 parts"),
    ("relearn", "", "learns again"),
]


def asked(page: Page, button: str, how: str, typed: str = "") -> None:
    """Press a button; a dialog asks; answer it."""
    page.click(f"#{button}")
    expect(page.locator("#ask")).to_be_visible()
    if typed:
        page.fill("#ask-value", typed)
    page.click(f"#ask-{how}")
    expect(page.locator("#ask")).to_be_hidden()


def answer(page: Page) -> Locator:
    """The keeper's answer, once it is there."""
    found = page.locator("#answer[data-ok]")
    expect(found).to_be_visible()
    return found


def test_each_button_asks_once_and_shows_and_logs_the_keepers_answer(plant: Plant, open_page: OpenPage) -> None:
    page = open_page(f"/lines/{plant.told}")
    for button, typed, beginning in BUTTONS:
        before = plant.commands(plant.told)
        asked(page, button, "cancel", typed)
        assert plant.commands(plant.told) == before
        asked(page, button, "confirm", typed)
        said = answer(page)
        expect(said).to_contain_text(beginning)
        expect(said).to_have_attribute("data-ok", str(not beginning.startswith("Refused")).lower())
        expect(said).to_contain_text(re.compile(rf"\({button}, ann at \d+:\d\d:\d\d"))
        assert plant.commands(plant.told) == before + 1
        page.evaluate("delete document.getElementById('answer').dataset.ok")
    expect(page.locator("#journal tbody tr")).to_have_count(len(BUTTONS))
    for row, (button, typed, beginning) in zip(page.locator("#journal tbody tr").all(), BUTTONS[::-1], strict=True):
        when, who, what, text = row.locator("td").all()
        expect(what).to_have_text(f"{button} {typed}".strip())
        expect(who).to_have_text("ann")
        expect(when).to_have_text(re.compile(r"\d+:\d\d:\d\d"))
        expect(text).to_contain_text(beginning.removeprefix("Refused: "))
    logged = [json.loads(line) for line in plant.output.read_text().splitlines() if line.startswith("{")]
    asked_of = [entry for entry in logged if entry["event"] == "asked" and entry["line"] == plant.told]
    assert [(entry["name"], entry["by"]) for entry in asked_of] == [(button, "ann") for button, _, _ in BUTTONS]


def test_pause_and_resume_are_there_when_they_can_be_pressed(plant: Plant, open_page: OpenPage) -> None:
    page = open_page(f"/lines/{plant.story}")
    expect(page.locator("#resume")).to_be_hidden()
    asked(page, "pause", "confirm")
    expect(page.locator("#resume")).to_be_visible()
    expect(page.locator("#pause")).to_be_hidden()
    expect(page.locator(".badge").first).to_have_text("paused")
    asked(page, "resume", "confirm")
    expect(page.locator("#pause")).to_be_visible()
    expect(page.locator(".badge").first).to_have_text("scoring")


def test_a_rate_that_was_not_typed_is_asked_for(plant: Plant, open_page: OpenPage) -> None:
    page = open_page(f"/lines/{plant.shown}")
    before = plant.commands(plant.shown)
    page.click("#rate")
    page.click("#ask-confirm")
    expect(page.locator("#ask")).to_be_visible()
    assert page.evaluate("document.getElementById('ask-value').validity.valueMissing")
    page.keyboard.press("Escape")
    expect(page.locator("#ask")).to_be_hidden()
    assert plant.commands(plant.shown) == before


@pytest.fixture(scope="module")
def flagged(plant: Plant) -> list[str]:
    """Parts in the gallery of the line that is told nothing, the newest first."""
    names = [f"part-{seed}" for seed in (21, 22, 23)]
    for seed, name in zip((21, 22, 23), names, strict=True):
        assert plant.stain(plant.shown, name, seed)["anomalous"]
    return names[::-1]


def test_review_goes_by_the_keyboard(plant: Plant, open_page: OpenPage, flagged: list[str]) -> None:
    page = open_page(f"/lines/{plant.shown}")
    before = plant.commands(plant.shown)
    page.locator("#gallery li", has_text=flagged[0]).locator("a").focus()
    page.keyboard.press("Enter")
    heading = page.locator("h1")
    expect(heading).to_have_text(flagged[0])
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 0)):
        live(page)
        page.keyboard.press(key)
        expect(heading).to_have_text(flagged[expected])
    for key, title in (("n", "Is this part normal?"), ("b", "Is this part bad?")):
        page.keyboard.press(key)
        expect(page.locator("#ask-title")).to_have_text(title)
        page.keyboard.press("ArrowRight")
        expect(heading).to_have_text(flagged[0])
        page.keyboard.press("Escape")
        expect(page.locator("#ask")).to_be_hidden()
    assert plant.commands(plant.shown) == before
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    expect(answer(page)).to_contain_text("(anomalous, ann at")
    assert plant.commands(plant.shown) == before + 1
    page.click("nav >> text=" + plant.shown)
    expect(page.locator("#journal tbody tr").first).to_contain_text("annanomalous")


def test_keys_pressed_at_once_after_a_question_is_left_still_ask_and_send(
    plant: Plant, open_page: OpenPage, flagged: list[str]
) -> None:
    page = open_page(f"/lines/{plant.shown}")
    page.locator("#gallery li", has_text=flagged[1]).click()
    expect(page.locator("h1")).to_have_text(flagged[1])
    live(page)
    before = plant.commands(plant.shown)
    page.evaluate(  # in one task of the browser: no event of the dialog comes in between
        """for (const id of ["normal", "ask-cancel", "anomalous", "ask-confirm"]) document.getElementById(id).click()"""
    )
    expect(answer(page)).to_contain_text("(anomalous, ann at")
    assert plant.commands(plant.shown) == before + 1


def test_a_part_that_was_set_aside_and_is_bad_leaves_review_and_takes_nothing_along(
    plant: Plant, open_page: OpenPage
) -> None:
    streams = plant.streams(plant.shown)
    part = review_part("7-0", Image("odd", "png", encoded(picture())), "quarantined", None, None, "")
    key = plant.client.xadd(streams.review, part._asdict()).decode()
    page = open_page(f"/lines/{plant.shown}")
    page.goto(f"{plant.url}/lines/{plant.shown}/review/{key}")
    live(page)
    page.keyboard.press("b")
    expect(page.locator("#ask-text")).to_contain_text("taken out of review")
    page.keyboard.press("Enter")
    expect(answer(page)).to_contain_text("removed from review (anomalous, ann at")
    assert plant.client.xrange(streams.review, key, key) == []
    eventually(lambda: key not in plant.gallery(plant.shown))  # the next test's would ask for its picture


def test_who_only_looks_finds_every_button_shut(plant: Plant, open_page: OpenPage, flagged: list[str]) -> None:
    page = open_page(f"/lines/{plant.shown}", token="")
    for button in page.locator("[data-command]").all():
        expect(button).to_be_disabled()
    page.locator("#gallery li", has_text=flagged[0]).click()
    expect(page.locator("#read-only")).to_be_visible()
    live(page)
    page.keyboard.press("n")
    expect(page.locator("#ask")).to_be_hidden()
    for button in page.locator("[data-command]").all():
        expect(button).to_be_disabled()
