import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CONTENT_TYPE_LATEST

from tests.worker.helpers import eventually
from worker.errors import ConfigurationError
from worker.http import HttpServer, make_app
from worker.metrics import Metrics
from worker.settings import HttpSettings


class Probes:
    def __init__(self) -> None:
        self.alive = self.ready = self.reached = ""


@pytest.fixture
def probes() -> Probes:
    return Probes()


@pytest.fixture
def server(probes: Probes) -> Iterator[HttpServer]:
    app = make_app(Metrics().registry, lambda: probes.alive, lambda: probes.ready, lambda: probes.reached)
    server = HttpServer(HttpSettings(port=0), app)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def pages(server: HttpServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as pages:
        yield pages


def test_metrics_are_given_as_prometheus_reads_them(pages: httpx.Client) -> None:
    answer = pages.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE_LATEST)
    assert "\nmhpc_redis_reconnects_total 0.0\n" in answer.text


def test_a_probe_that_is_well_says_ok(pages: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        assert (pages.get(path).status_code, pages.get(path).text) == (200, "ok\n")


def test_a_probe_that_is_not_says_what_is_the_matter(pages: httpx.Client, probes: Probes) -> None:
    probes.ready = "Redis is not reached"
    assert (pages.get("/readyz").status_code, pages.get("/readyz").text) == (503, "Redis is not reached\n")
    assert pages.get("/healthz").status_code == 200
    probes.alive = "stalled"
    assert (pages.get("/healthz").status_code, pages.get("/healthz").text) == (503, "stalled\n")


def test_whether_lines_are_well_may_be_left_out_of_being_ready(pages: httpx.Client, probes: Probes) -> None:
    probes.ready = "line press-3: the stream ends at 5-0"
    assert (pages.get("/readyz?lines=0").status_code, pages.get("/readyz?lines=0").text) == (200, "ok\n")
    for query in ("", "?lines=1", "?lines="):
        assert pages.get(f"/readyz{query}").status_code == 503
    probes.reached = "Redis is not reached"
    assert (pages.get("/readyz?lines=0").status_code, pages.get("/readyz?lines=0").text) == (
        503,
        "Redis is not reached\n",
    )


def test_there_are_no_other_pages_and_nothing_can_be_sent(pages: httpx.Client) -> None:
    for path in ("/", "/metrics/x", "/health", "/docs"):
        assert pages.get(path).status_code == 404
    assert pages.post("/metrics").status_code == 405


def test_the_server_stops_and_gives_its_port_back() -> None:
    server = HttpServer(HttpSettings(port=0), make_app(Metrics().registry, str, str, str))
    server.start()
    assert httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=30).status_code == 200
    server.stop()
    eventually(lambda: "http" not in [thread.name for thread in threading.enumerate()])
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_a_port_that_is_taken_is_refused_with_the_remedy_even_before_its_server_has_started() -> None:
    server = HttpServer(HttpSettings(port=0), make_app(Metrics().registry, str, str, str))
    with pytest.raises(ConfigurationError, match=r"cannot be bound .* another http\.port, or 0") as caught:
        HttpServer(HttpSettings(port=server.port), make_app(Metrics().registry, str, str, str))
    server.start()
    server.stop()
    assert f"127.0.0.1:{server.port}" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_a_host_that_is_not_this_machines_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be bound"):
        HttpServer(HttpSettings(host=host, port=0), make_app(Metrics().registry, str, str, str))
