"""deploy/ fits the project: what it names exists, and its configuration loads."""

from pathlib import Path
from typing import Any

import yaml

from worker.configuration import load_settings
from worker.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"


def services() -> dict[str, Any]:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return dict(compose["services"])


def test_the_configuration_of_the_containers_loads_and_finds_redis_by_its_service_name() -> None:
    settings = load_settings(DEPLOY / "worker.toml", environ={})
    assert settings.redis.url.get_secret_value().startswith("redis://redis:")
    assert {"redis", "worker", "prometheus"} <= set(services())


def test_every_file_that_compose_mounts_or_builds_from_exists() -> None:
    worker = services()["worker"]
    context = (DEPLOY / worker["build"]["context"]).resolve()
    assert (context / worker["build"]["dockerfile"]).is_file()
    for service in services().values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_file(), source


def test_prometheus_scrapes_the_port_that_the_worker_serves() -> None:
    port = load_settings(DEPLOY / "worker.toml", environ={}).http.port
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (targets,) = (config["static_configs"][0]["targets"] for config in scrape["scrape_configs"])
    assert targets == [f"worker:{port}"]


def test_prometheus_loads_an_alert_for_drift_by_a_metric_that_exists() -> None:
    folder = DEPLOY / "prometheus"
    prometheus = yaml.safe_load((folder / "prometheus.yml").read_text())
    mounted = {volume.split(":")[1] for volume in services()["prometheus"]["volumes"]}
    rules = []
    for name in prometheus["rule_files"]:
        assert f"/etc/prometheus/{name}" in mounted
        rules += [rule for group in yaml.safe_load((folder / name).read_text())["groups"] for rule in group["rules"]]
    (drift,) = (rule for rule in rules if rule["alert"] == "MhpcDrift")
    assert (drift["expr"], drift["for"]) == ("mhpc_drift > 1", "10m")
    metrics = Metrics()
    metrics.drift.labels("press-3").set(2)
    assert metrics.registry.get_sample_value("mhpc_drift", {"line": "press-3"}) == 2


def test_nothing_is_published_beyond_loopback() -> None:
    for service in services().values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), port
