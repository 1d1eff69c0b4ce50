"""The live page as people have it: the distribution's Chromium, a worker's and a console's process, a real Redis."""

import shutil
import uuid
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.worker.console.browser.plant import CALIBRATE, LEARN, Plant, serving
from tests.worker.console.site import TOKEN
from tests.worker.faults.processes import running_worker, write_config

PATIENCE_MS = 60_000  # for what takes a moment here, but longer on a machine that is busy
ARGUMENTS = [
    "--no-sandbox",  # in containers tests run as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]

OpenPage = Callable[..., Page]
NewContext = Callable[..., BrowserContext]


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    if not (program := shutil.which("chromium")):
        pytest.skip("no chromium on the PATH; Debian's package of that name has it")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def plant(chromium: Browser, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Lines that score, and their page."""
    folder, run = tmp_path_factory.mktemp("plant"), uuid.uuid4().hex[:6]
    lines = [f"{name}-{run}" for name in ("shown", "story", "told")]
    config = write_config(folder, redis_url, lines[0], folder / "snapshots", learn=LEARN, calibrate=CALIBRATE)
    with config.open("a") as file:
        file.writelines(f'[[lines]]\nname = "{line}"\n' for line in lines[1:])
    with serving(folder, config, redis_url, *lines) as plant, running_worker(config):
        plant.begin(*lines)
        yield plant


@pytest.fixture
def faults() -> Iterator[list[str]]:
    """What a browser complains of, and requests that leave for elsewhere; a test that expects some clears them."""
    found = list[str]()
    yield found
    assert not found


@pytest.fixture
def new_context(chromium: Browser) -> Iterator[NewContext]:
    """A browser without any past; it is closed with the test."""
    contexts = list[BrowserContext]()

    def new_context(**options: object) -> BrowserContext:
        context = chromium.new_context(**{"reduced_motion": "reduce", **options})  # type: ignore[arg-type]  # Playwright's
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        return context

    yield new_context
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(new_context: NewContext, faults: list[str], request: pytest.FixtureRequest) -> OpenPage:
    """Open a page of the console, as ann unless told otherwise; options are a browser context's."""

    def open_page(path: str, token: str = TOKEN, url: str = "", **options: object) -> Page:
        url = url or request.getfixturevalue("plant").url
        context = new_context(**options)
        watch(context, url, faults)
        page = context.new_page()
        page.goto(f"{url}{path}?token={token}" if token else f"{url}{path}")
        return page

    return open_page


def live(page: Page) -> None:
    """Wait for a page that a link led to: it is there before its script is, and a press in between does nothing."""
    expect(page.locator("#live-text")).to_have_text("live")


def watch(context: BrowserContext, url: str, faults: list[str]) -> None:
    """Take down errors of scripts, refusals of the Content-Security-Policy, and requests to another host."""

    def asked(request: Request) -> None:
        if not request.url.startswith(f"{url}/"):
            faults.append(f"a request to {request.url}")

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            faults.append(f"{message.text} {message.location['url']}".strip())

    context.on("request", asked)
    context.on("console", said)
    context.on("weberror", lambda error: faults.append(str(error.error)))
