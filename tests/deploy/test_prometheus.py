"""deploy/prometheus: rules that load, tell what they should, and rely on metrics that a worker has."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.promql import exported, names, problems
from worker.configuration import load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "prometheus"
REQUIRED = {  # that a plant is to be told of
    "MhpcLag", "MhpcOldestPending", "MhpcSnapshotStale", "MhpcNoKeeper", "MhpcEntriesLost", "MhpcDeadLetters",
    "MhpcDrift", "MhpcWorkerAbsent", "MhpcFleetProblems", "MhpcSettingsDiffer",
}  # fmt: skip

Document = dict[str, Any]


def loaded(name: str) -> Document:
    return dict(yaml.safe_load((FOLDER / name).read_text()))


def rules() -> list[Document]:
    return [rule for group in loaded("alerts.yml")["groups"] for rule in group["rules"]]


RULES = {str(rule["alert"]): rule for rule in rules()}


def cases(alert: str, fires: bool) -> list[Document]:
    """The rule tests of an alert that expect it to fire, or to be silent."""
    return [
        test
        for test in loaded("alerts_test.yml")["tests"]
        for asked in test["alert_rule_test"]
        if asked["alertname"] == alert and bool(asked["exp_alerts"]) == fires
    ]


@pytest.fixture(scope="module")
def promtool() -> str:
    if not (found := shutil.which("promtool")):
        pytest.skip("no promtool on the PATH; Debian's package prometheus has it")
    return found


def told(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)


def test_promtool_takes_the_configuration_and_the_rules(promtool: str) -> None:
    for ended in (
        told(promtool, "check", "config", FOLDER / "prometheus.yml"),
        told(promtool, "check", "rules", FOLDER / "alerts.yml"),
    ):
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert f"{len(RULES)} rules found" in ended.stdout


def test_each_alert_fires_and_is_silent_where_it_should(promtool: str) -> None:
    ended = told(promtool, "test", "rules", FOLDER / "alerts_test.yml")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(("expression", "fires"), [("vector(0) > 1", True), ("vector(1)", False)])
def test_the_rule_tests_notice_alerts_that_never_fire_and_alerts_that_always_do(
    promtool: str, tmp_path: Path, expression: str, fires: bool
) -> None:
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    document = loaded("alerts.yml")
    for group in document["groups"]:
        group["rules"] = [{**rule, "expr": expression, "for": "0s"} for rule in group["rules"]]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(document))
    ended = told(promtool, "test", "rules", tmp_path / "alerts_test.yml")
    failed = set(re.findall(r"^ *name: (.*),$", ended.stdout + ended.stderr, re.MULTILINE))
    assert failed >= {test["name"] for alert in RULES for test in cases(alert, fires)}


@pytest.mark.parametrize("alert", sorted(RULES))
def test_each_alert_has_a_case_that_fires_and_one_that_only_comes_near(alert: str) -> None:
    assert cases(alert, fires=True)
    wanted = names(RULES[alert]["expr"])
    near = [{series["series"].partition("{")[0] for series in test["input_series"]} for test in cases(alert, False)]
    assert any(wanted <= given for given in near)  # a case that is silent because there is nothing says little


def test_what_a_plant_is_to_be_told_of_has_an_alert_with_all_that_it_takes() -> None:
    assert RULES.keys() >= REQUIRED
    for alert, rule in RULES.items():
        assert rule["labels"]["severity"] in ("page", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operate.md#{alert.lower()}"


def test_what_to_do_stands_behind_each_alert() -> None:
    text = (DEPLOY.parent / "docs" / "operate.md").read_text()
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    assert [alert for alert in RULES if alert not in headings] == []
    assert [heading for heading in headings if heading.startswith("Mhpc") and heading not in RULES] == []


def test_every_rule_relies_on_what_a_worker_exports() -> None:
    known = exported()
    assert {alert: found for alert, rule in RULES.items() if (found := problems(rule["expr"], known))} == {}


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("mhpc_lag_entries > 1", "no metric mhpc_lag_entries"),
        ("rate(mhpc_images[5m])", "no metric mhpc_images"),
        ('mhpc_drift{phase="scoring"}', "mhpc_drift has no label phase"),
        ('mhpc_images_total{outcome=~"scored|died"}', "outcome is never 'died'"),
        ("sum by (lines) (mhpc_drift)", "grouped by lines, which is no label"),
    ],
)
def test_what_no_worker_exports_is_noticed(expression: str, problem: str) -> None:
    assert problems(expression, exported()) == [problem]


def test_prometheus_loads_the_rules_and_scrapes_the_port_that_the_worker_serves() -> None:
    prometheus = loaded("prometheus.yml")
    assert prometheus["rule_files"] == ["alerts.yml"]
    port = load_settings(DEPLOY / "config" / "worker.toml", environ={}).http.port
    (mhpc,) = (job for job in prometheus["scrape_configs"] if job["job_name"] == "mhpc")
    assert mhpc["static_configs"] == [{"targets": [f"worker:{port}"]}]
