"""The live page on a real port, over a real Redis."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.console.site import TOKEN, Filled, Site
from worker.configuration import load_settings


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of their own: pages list all lines that there are, and hundreds of other tests leave theirs."""
    server = PrivateRedis(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.kill()


@pytest.fixture
def filled(client: redis.Redis, line: str) -> Filled:
    """A line that scores, as far as Redis tells."""
    return Filled(client, line)


@pytest.fixture(scope="package", autouse=True)
def _read_for_each_request() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.console.lines.LIVE_SECONDS", 0)
        patch.setattr("worker.console.lines.STATUS_SECONDS", 0)
        patch.setattr("worker.console.lines.NAMES_SECONDS", 0)
        yield


@pytest.fixture
def open_site(redis_url: str) -> Iterator[Callable[..., Site]]:
    """Open a page; it closes with the test."""
    with ExitStack() as stack:

        def open_site(console: dict[str, Any] | None = None, **sections: Any) -> Site:
            tokens = {"tokens": {"ann": TOKEN}, **(console or {})}
            settings = load_settings(None, {"redis": {"url": redis_url}, "console": tokens, **sections})
            return stack.enter_context(Site(settings))

        yield open_site


@pytest.fixture(scope="package")
def shared_site(redis_url: str, _read_for_each_request: None) -> Iterator[Site]:
    with Site(load_settings(None, {"redis": {"url": redis_url}, "console": {"tokens": {"ann": TOKEN}}}, {})) as site:
        yield site


@pytest.fixture
def site(shared_site: Site, filled: Filled) -> Site:
    """A page with a token, and a line to look at; nobody is logged in."""
    shared_site.browser.cookies.clear()
    return shared_site
