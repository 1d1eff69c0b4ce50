"""deploy/grafana: dashboards that rely on what a worker exports, and show it."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations, count
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from tests.conftest import free_port
from tests.deploy.composing import check_of, healthy
from tests.deploy.promql import exported, names, problems
from tests.deploy.test_prometheus import FOLDER as PROMETHEUS
from tests.deploy.test_prometheus import RULES
from tests.worker.helpers import eventually, small_settings
from tests.worker.playing import in_phase, send
from tests.worker.turning import running
from worker.daemon import Worker
from worker.line import SCORING

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
ALERTS = {"ALERTS": {"alertname", "alertstate", "severity", "line", "instance", "job"}}  # that Prometheus adds
LINE = "dashboards-1"

Panel = dict[str, Any]


def dashboard(name: str) -> dict[str, Any]:
    return dict(json.loads((DASHBOARDS / f"{name}.json").read_text()))


def panels(name: str) -> list[Panel]:
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


PANELS = [(name, panel) for name in ("fleet", "line") for panel in panels(name)]
EXPRESSIONS = [(f"{name}: {panel['title']}", target["expr"]) for name, panel in PANELS for target in panel["targets"]]


def filled_in(expression: str) -> str:
    """With the variables that Grafana puts in."""
    text = expression.replace("$__rate_interval", "10s").replace("$line", LINE)
    assert "$" not in text, expression
    return text


# -- on paper ----------------------------------------------------------------------------------------------------------


def test_every_panel_relies_on_what_a_worker_exports() -> None:
    known = exported() | ALERTS
    found = {where: told for where, text in EXPRESSIONS if (told := problems(filled_in(text), known))}
    assert found == {}


def test_a_line_is_chosen_among_those_that_prometheus_knows() -> None:
    datasource, line = dashboard("line")["templating"]["list"]
    assert (datasource["name"], datasource["query"]) == ("datasource", "prometheus")
    asked = re.fullmatch(r"label_values\((\w+), line\)", line["query"]["query"])
    assert asked
    assert "line" in exported()[asked[1]]
    assert all("$line" in text for where, text in EXPRESSIONS if where.startswith("line:"))


@pytest.mark.parametrize("name", ["fleet", "line"])
def test_a_dashboard_is_laid_out_without_gaps_in_width_and_overlaps(name: str) -> None:
    taken: dict[int, int] = {}
    places = [panel["gridPos"] for panel in dashboard(name)["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)
    for place in places:
        taken[place["y"]] = taken.get(place["y"], 0) + place["w"]
    assert set(taken.values()) == {24}
    ids = [panel["id"] for panel in dashboard(name)["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_says_what_it_shows_in_which_unit_and_by_which_source() -> None:
    for name, panel in PANELS:
        assert panel["title"], name
        assert len(panel["description"]) > 15, panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources), panel["title"]
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_what_panels_and_links_point_to_exists() -> None:
    named = {alert for _, panel in PANELS for alert in re.findall(r"runbook, (\w+)", panel["description"])}
    assert named
    assert named <= RULES.keys()
    urls = {
        uid
        for name in ("fleet", "line")
        for uid in re.findall(r'"/d/([\w-]+)', (DASHBOARDS / f"{name}.json").read_text())
    }
    assert urls == {dashboard("fleet")["uid"], dashboard("line")["uid"]}


def test_what_was_lost_is_counted_as_the_alert_counts_it() -> None:
    """What was lost while no worker ran is in the first sample, of which there is no increase."""
    (panel,) = (panel for panel in panels("fleet") if panel["title"] == "Lost in 24 hours")
    counted = RULES["MhpcEntriesLost"]["expr"].replace("sum by (line)", "sum").replace("1h", "24h")
    (target,) = panel["targets"]
    assert target["expr"].split() == f"{counted} or vector(0)".replace("sum (", "sum(").split()


def test_what_is_provisioned_lies_where_compose_mounts_it() -> None:
    grafana = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/mhpc.yaml").read_text())["providers"]
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{mounts['./grafana/dashboards']}/fleet.json"
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


# -- at work -----------------------------------------------------------------------------------------------------------


class Prometheus:
    """As it is deployed, but for the worker's address and a shorter interval."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def shows(self, expression: str) -> bool:
        """Whether there is a number, now."""
        return any(sample["value"][1] != "NaN" for sample in self.get("query", query=expression)["result"])


@contextmanager
def prometheus(folder: Path, worker: Worker) -> Iterator[Prometheus]:
    if not (program := shutil.which("prometheus")):
        pytest.skip("no prometheus on the PATH; Debian's package of that name has it")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{worker.http.port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(PROMETHEUS / "alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *options, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://{address}")
        eventually(lambda: _ready(server.url))
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    snapshots = {"directory": tmp_path_factory.mktemp("snapshots"), "every_images": 8}
    with running(small_settings(LINE, redis={"url": redis_url}, snapshots=snapshots)) as worker:
        yield worker


def test_every_panel_shows_something_of_a_line_that_is_at_work(
    worker: Worker, client: redis.Redis, tmp_path: Path
) -> None:
    send(client, LINE, 1, 36)
    eventually(lambda: in_phase(client, LINE, SCORING))
    with prometheus(tmp_path, worker) as server:
        numbers = count(40, 4)

        def missing() -> list[tuple[str, str]]:
            send(client, LINE, first := next(numbers), first + 3)
            return [(where, text) for where, text in wanted if not server.shows(filled_in(text))]

        known = known_to(worker)
        wanted = [(where, text) for where, text in EXPRESSIONS if names(filled_in(text)) <= known]
        eventually(lambda: not missing())
        assert server.get("label/line/values") == [LINE]
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(RULES, "ok")
        if shutil.which("wget"):
            here = {"http://127.0.0.1:9090": server.url}
            assert healthy(check_of("prometheus"), here)
            assert not healthy(check_of("prometheus"), {"http://127.0.0.1:9090": f"http://127.0.0.1:{free_port()}"})


def known_to(worker: Worker) -> set[str]:
    """All that can be shown: before Redis 7 nobody knows of a lag."""
    lag = "mhpc_stream_lag_entries"
    eventually(lambda: worker.metrics.registry.get_sample_value(lag, {"line": LINE}) is not None)
    unknown = math.isnan(worker.metrics.registry.get_sample_value(lag, {"line": LINE}) or 0.0)
    return (exported().keys() | ALERTS.keys()) - ({lag} if unknown else set())
