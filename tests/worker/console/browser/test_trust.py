"""What comes from outside is shown and never obeyed: markup, texts without end, wrong tokens, other sites' pages."""

import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgpack
import pytest
from playwright.sync_api import expect

from tests.worker.console.browser.conftest import NewContext, OpenPage
from tests.worker.console.browser.plant import Plant
from tests.worker.console.site import TOKEN, Filled
from worker.message import Image
from worker.streams.review import review_part

MARKUP = "<img src=x onerror=window.obeyed='id'>"
META = {"</pre><script>window.obeyed='meta'</script>": "\"'><svg onload=\"window.obeyed='meta'\">"}

CUT = re.compile("^x{15,63}…[x…]{0,40}$")

ATTACK = """<!doctype html><title>elsewhere</title>
<form method="post" enctype="text/plain" action="{console}/lines/{line}/commands">
<input name='{{"name": "pause", "args": [], "x": "' value='"}}'></form>
<form method="post" action="{console}/logout"></form>
<form method="post" action="{console}/login"><input name="token" value="{token}"></form>
<script>
addEventListener("load", async () => {{
  const body = JSON.stringify({{name: "pause", args: []}});
  for (const mode of ["no-cors", "cors"]) {{
    for (const path of ["/lines/{line}/commands", "/logout"])
      await fetch("{console}" + path, {{method: "POST", mode, credentials: "include", body}}).catch(() => {{}});
  }}
  document.title = "tried";
}});
</script>"""


@contextmanager
def another_site(page: str) -> Iterator[int]:
    """A server of somebody else with this page; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_markup_in_an_id_and_in_meta_is_text(plant: Plant, open_page: OpenPage) -> None:
    assert plant.stain(plant.shown, MARKUP, 31, meta=META)["anomalous"]
    page = open_page(f"/lines/{plant.shown}")
    expect(page.locator("#results tbody a").first).to_have_text(MARKUP)
    card = page.locator("#gallery li").first
    expect(card.locator(".cap > .soft")).to_have_text(MARKUP)
    page.hover("#chart")
    card.click()
    expect(page.locator("h1")).to_have_text(MARKUP)
    for text in ("</pre><script>", "<svg onload"):
        expect(page.locator("#meta")).to_contain_text(text)
    expect(page.locator("#live-text")).to_have_text("live")
    assert plant.stain(plant.shown, MARKUP, 32, meta=META)["anomalous"]
    expect(page.locator("#again tbody tr").first).to_be_visible()
    assert page.evaluate("window.obeyed") is None
    assert page.locator("img[src=x], svg[onload]").count() == 0


def test_markup_in_what_a_line_was_told_is_text(plant: Plant, open_page: OpenPage) -> None:
    page = open_page(f"/lines/{plant.shown}")
    page.click("#rollback")
    page.fill("#ask-value", MARKUP)
    page.click("#ask-confirm")
    expect(page.locator("#answer")).to_contain_text(MARKUP)
    expect(page.locator("#journal tbody tr").first).to_contain_text(MARKUP)
    assert page.evaluate("window.obeyed") is None


@pytest.fixture
def filled(plant: Plant) -> Filled:
    """A line that scores, as far as Redis tells; anything may be written into it."""
    filled = Filled(plant.client, f"filled-{uuid.uuid4().hex[:6]}")
    plant.known(filled.line)
    return filled


def forgive(faults: list[str], *expected: str) -> None:
    """What a browser says of answers that are meant to be refusals; nothing else may be among it."""
    assert faults
    assert [fault for fault in faults if not all(text in fault for text in expected)] == []
    faults.clear()


def test_an_id_of_a_million_characters_is_cut(open_page: OpenPage, filled: Filled, faults: list[str]) -> None:
    long = "x" * 1_000_000
    key = filled.flagged(long)
    page = open_page(f"/lines/{filled.line}")
    expect(page.locator("#results tbody a").first).to_have_text(CUT)
    expect(page.locator("#gallery .cap > .soft")).to_have_text(CUT)
    assert len(page.content()) < 50_000
    page.goto(page.url + f"/review/{key}")
    expect(page.locator("h1")).to_have_text(CUT)
    assert len(page.content()) < 50_000
    assert "1,000,000 characters" in (page.locator("h1").get_attribute("title") or "")
    expect(page.locator("#picture-gone")).to_contain_text("`id` has 1000000 characters")
    forgive(faults, "404", ".jpg")  # no worker takes such an id


def test_a_map_that_is_broken_and_a_picture_that_is_none_are_told(
    open_page: OpenPage, filled: Filled, faults: list[str]
) -> None:
    filled.junk("scores", "result")
    filled.junk("review", "image")
    part = review_part("7-0", Image("torn", "png", b"\x89PNG torn"), "anomalous", 5.0, 2.0, "1-1")
    filled.put("review", **part._asdict())
    page = open_page(f"/lines/{filled.line}")
    expect(page.locator("[data-text=broken]")).to_contain_text("hold no result")
    card = page.locator("#gallery li", has_text="torn")
    expect(card.locator(".gone")).to_have_text("9 bytes that are not a png")
    card.click()
    expect(page.locator("#picture-gone")).to_have_text("9 bytes that are not a png")
    half = {"id": "half", "score": 5.0, "threshold": 2.0, "map": {"shape": [9, 9], "max": 1.0, "data": b"few"}}
    key = filled.put("scores", result=msgpack.packb(half))
    page.goto(f"{page.url.partition('/review/')[0]}/scores/{key}")
    expect(page.locator("#score")).to_have_text("5.000")
    expect(page.locator("#heat")).to_have_count(0)
    expect(page.locator("#no-map")).to_contain_text("the heat map is broken")
    forgive(faults, "404", filled.line)


def test_a_wrong_token_is_told_and_a_right_one_leads_back(plant: Plant, open_page: OpenPage, faults: list[str]) -> None:
    page = open_page(f"/lines/{plant.shown}", token="")
    page.click("#login-link")
    page.fill("#token", "not-a-token-of-anybody")
    page.click("#login")
    expect(page.locator("#problem")).to_have_text("This token is not known.")
    forgive(faults, "401", "/login")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#who")).to_have_text("ann")
    assert page.url == f"{plant.url}/lines/{plant.shown}"
    page.click("#logout")
    expect(page.locator("#login-link")).to_be_visible()


def test_a_right_token_leads_back_to_a_page_that_is_gone_too(
    plant: Plant, open_page: OpenPage, faults: list[str]
) -> None:
    gone = f"/lines/{plant.shown}/scores/1-1"
    page = open_page(gone, token="")
    page.click("#login-link")
    page.fill("#token", TOKEN)
    page.click("#login")
    expect(page.locator("#who")).to_have_text("ann")
    expect(page.locator("h1")).to_have_text("This part is gone")
    assert page.url == f"{plant.url}{gone}"
    forgive(faults, "404", gone)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # another port of the same site, and another site
def test_a_page_of_another_site_changes_nothing(plant: Plant, new_context: NewContext, host: str) -> None:
    context = new_context()
    page = context.new_page()
    page.goto(f"{plant.url}/?token={TOKEN}")
    expect(page.locator("#who")).to_have_text("ann")
    before = plant.commands(plant.shown)
    attack = ATTACK.format(console=plant.url, line=plant.shown, token=TOKEN)
    with another_site(attack) as port:
        elsewhere = context.new_page()
        for form in range(3):
            elsewhere.goto(f"http://{host}:{port}/")
            elsewhere.wait_for_function("document.title === 'tried'")
            with elsewhere.expect_navigation() as told:
                elsewhere.evaluate("form => document.forms[form].submit()", form)
            assert told.value.status == 403
    assert plant.commands(plant.shown) == before
    page.reload()
    expect(page.locator("#who")).to_have_text("ann")
