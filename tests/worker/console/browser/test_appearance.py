"""For everybody: axe-core's rules, a telephone's width and a wall's, in both themes."""

import uuid

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.worker.console.browser.conftest import OpenPage
from tests.worker.console.browser.plant import Plant
from tests.worker.console.site import Filled
from tests.worker.helpers import eventually
from worker.streams.control import Command, Reply, encode_reply, send

THEMES = ("light", "dark")
WIDTHS = (320, 360, 768, 1280, 2560)
PAST_ITS_CELL = (
    "node => Math.round(node.getBoundingClientRect().right - node.closest('dd').getBoundingClientRect().right)"
)

LINES_OF_FIRST_WORD = """nodes => nodes.map((node) => {
  const word = document.createRange(), text = document.createTreeWalker(node, NodeFilter.SHOW_TEXT).nextNode();
  word.setStart(text, 0);
  word.setEnd(text, text.data.split(" ")[0].length);
  return word.getClientRects().length;
})"""


@pytest.fixture(scope="module")
def pages(plant: Plant) -> dict[str, str]:
    """The path of each kind of page, with something on it."""
    flagged = plant.stain(plant.shown, "a-part-with-quite-a-long-name_" + "0123456789" * 8, 41)
    review = plant.streams(plant.shown).review
    key = eventually(lambda: plant.client.xrevrange(review, count=1))[0][0].decode()
    result = plant.client.xrevrange(plant.streams(plant.shown).scores, count=1)[0][0].decode()
    assert flagged["anomalous"]
    line = f"/lines/{plant.shown}"
    return {
        "fleet": "/", "line": line, "flagged part": f"{line}/review/{key}", "part": f"{line}/scores/{result}",
        "login": "/login", "nothing": "/nothing",
    }  # fmt: skip


def visit(page: Page, path: str) -> None:
    """Go there, and wait until what is live is."""
    page.goto(f"{page.evaluate('location.origin')}{path}")
    if path not in ("/login", "/nothing"):
        expect(page.locator("#live-text")).to_have_text("live")
    if path.count("/") == 2:
        expect(page.locator("#gallery li").first).to_be_visible()


def faulty(page: Page) -> list[str]:
    """What axe-core calls serious or worse."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['html']} {node['failureSummary']}"
        for fault in found
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical")
    ]


def sideways(page: Page) -> int:
    """Pixels by which a page is wider than its window."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wide


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_no_serious_fault(open_page: OpenPage, pages: dict[str, str], theme: str, faults: list[str]) -> None:
    page = open_page("/", color_scheme=theme)
    found = dict[str, list[str]]()
    for name, path in pages.items():
        visit(page, path)
        found[name] = faulty(page)
    visit(page, pages["line"])
    page.click("#rate")
    found["dialog"] = faulty(page)
    assert found == {name: [] for name in found}
    only_the_page_that_is_not_there(faults)


def test_no_page_scrolls_sideways(open_page: OpenPage, pages: dict[str, str], faults: list[str]) -> None:
    page = open_page("/")
    for path in pages.values():
        visit(page, path)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert sideways(page) == 0, f"{path} at {width}"
    visit(page, pages["line"])
    page.click("#relearn")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        box = page.locator("#ask").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    only_the_page_that_is_not_there(faults)


def only_the_page_that_is_not_there(faults: list[str]) -> None:
    assert [fault for fault in faults if not fault.endswith("/nothing")] == []
    faults.clear()


def test_on_a_wall_charts_stand_side_by_side_and_letters_are_larger(open_page: OpenPage, pages: dict[str, str]) -> None:
    sizes = dict[int, float]()
    for width, height in ((360, 800), (2560, 1440)):
        page = open_page(pages["line"], viewport={"width": width, "height": height})
        chart, histogram = page.locator("#chart").bounding_box(), page.locator("#histogram").bounding_box()
        assert chart
        assert histogram
        assert (chart["y"] + chart["height"] <= histogram["y"]) == (width == 360)
        assert chart["width"] > 0.5 * width if width == 2560 else chart["width"] > 0.8 * width
        sizes[width] = page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)")
    assert 14 <= sizes[360] < sizes[2560]


def test_the_longest_name_of_a_line_fits_a_telephone(plant: Plant, open_page: OpenPage) -> None:
    filled = Filled(plant.client, f"{uuid.uuid4().hex[:6]}-".ljust(63, "x"))
    filled.flagged("y" * 200)
    plant.known(filled.line)
    page = open_page("/", viewport={"width": 360, "height": 800})
    assert sideways(page) == 0
    page.click(f"text={filled.line}")
    expect(page.locator("#gallery li")).to_be_visible()
    assert sideways(page) == 0
    page.click("#gallery a")
    expect(page.locator("#verdict")).to_be_visible()
    assert sideways(page) == 0


@pytest.mark.parametrize("keeper", ["vision01.halle2.werk-nord.example.com", "mhpc_inspection_worker_01"])
def test_a_keepers_long_name_stays_within_its_card(plant: Plant, open_page: OpenPage, keeper: str) -> None:
    filled = Filled(plant.client, f"filled-{uuid.uuid4().hex[:6]}")
    filled.client.set(filled.streams.lease, f"{keeper}#a", px=900_000)
    plant.known(filled.line)
    page = open_page("/")
    for path in ("/", f"/lines/{filled.line}"):
        page.goto(f"{plant.url}{path}")
        name = page.locator("[data-text=keeper]", has_text=keeper).last
        expect(name).to_be_visible()
        for width in (1400, 1024, *WIDTHS):
            page.set_viewport_size({"width": width, "height": 900})
            assert sideways(page) == 0, f"{path} at {width}"
            assert name.evaluate(PAST_ITS_CELL) <= 0, f"{path} at {width}"


def test_a_line_that_answers_on_with_a_problem_is_counted_apart_from_those_that_stopped(
    plant: Plant, open_page: OpenPage
) -> None:
    filled = Filled(plant.client, f"filled-{uuid.uuid4().hex[:6]}")
    filled.state(problem="no snapshot, and nothing is acknowledged: no space left")
    plant.known(filled.line)
    page = open_page("/")
    expect(page.locator(f"#line-{filled.line} .badge")).to_have_text("problem")
    expect(page.locator("#summary")).to_contain_text(" with a problem")
    assert faulty(page) == []


def test_the_name_of_a_command_is_not_broken_however_long_an_answer_or_an_id_beside_it(
    plant: Plant, open_page: OpenPage
) -> None:
    filled = Filled(plant.client, f"filled-{uuid.uuid4().hex[:6]}")
    for name, args in (("pause", {}), ("anomalous", {"entry": "1-0", "id": "x" * 80})):
        sent = send(filled.streams, name, args, "ann")
        answer = encode_reply(Command(sent, name, args, "ann"), Reply(False, "it goes on from there; " * 20))
        filled.put("replies", reply=answer)
    plant.known(filled.line)
    page = open_page(f"/lines/{filled.line}")
    names = page.locator("#journal td:nth-child(3)")
    expect(names).to_have_text([f"anomalous 1-0 {'x' * 80}", "pause"])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert names.evaluate_all(LINES_OF_FIRST_WORD) == [1, 1], f"at {width}"
        assert sideways(page) == 0, f"at {width}"


def test_a_theme_is_chosen_and_stays(open_page: OpenPage) -> None:
    page = open_page("/", color_scheme="light")

    def background() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light = background()
    for theme in ("light", "dark"):
        page.click("#theme")
        expect(page.locator("#theme")).to_have_attribute("aria-label", f"Theme: {theme}")
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
