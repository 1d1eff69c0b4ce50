"""deploy/kubernetes: its kinds are taken as written, and they agree with the worker, the image and each other."""

import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from tests.deploy.composing import HOW, ROOT
from tests.deploy.promql import exported, problems
from worker.configuration import load_settings
from worker.errors import ConfigurationError
from worker.http import make_app
from worker.runtime.crashes import SIGNS
from worker.runtime.pulse import STALLED_SECONDS

FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.32", "1.37")  # the oldest and the newest that are checked
MODELS = {"ScaledObject": "cloudcoil.models.keda.v1alpha1", "PodMonitor": "cloudcoil.models.prometheus_operator.v1"}
POD_LABELS = {"namespace", "pod"}  # that the Prometheus operator adds

Document = dict[str, Any]


def documents(folder: Path) -> Iterator[Document]:
    """What a kustomization lists, as it stands in the files."""
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((folder / name).read_text())


def rendered(folder: Path) -> list[Document]:
    """What `kubectl apply -k` would send; the test is skipped without kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on the PATH: https://kubernetes.io/docs/tasks/tools/")
    ended = subprocess.run(
        ["kubectl", "kustomize", str(folder)],  # noqa: S607 - any kubectl will do
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    return list(yaml.safe_load_all(ended.stdout))


def module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        pytest.skip(f"no {name.partition('.')[0]}: {HOW}")


def refuse(document: Document, version: str) -> None:
    """Raises for what Kubernetes, or the maker of another kind, would not take."""
    if document["kind"] not in MODELS:
        module("kubernetes_validate").validate(document, version, strict=True)
        return
    model = getattr(module(MODELS[document["kind"]]), document["kind"])
    understood = model.model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert understood == document, f"something is dropped of {document}"


ALL = [*documents(FOLDER), *documents(FOLDER / "monitoring")]
BY_NAME = {(document["kind"], document["metadata"]["name"]): document for document in ALL}
WORKERS = [BY_NAME["StatefulSet", "mhpc-keepers"], BY_NAME["Deployment", "mhpc-scorers"]]
PODS = [worker["spec"]["template"]["spec"] for worker in WORKERS]
CONTAINERS = [container for pod in PODS for container in pod["containers"]]
both = pytest.mark.parametrize("worker", WORKERS, ids=lambda worker: worker["kind"])


# -- what Kubernetes makes of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", ALL, ids=lambda document: f"{document['kind']}-{document['metadata']['name']}")
def test_a_kind_is_as_its_schema_has_it(document: Document, version: str) -> None:
    refuse(document, version)


@pytest.mark.parametrize("document", ALL, ids=lambda document: f"{document['kind']}-{document['metadata']['name']}")
def test_an_unknown_key_is_refused(document: Document) -> None:
    part = next(name for name in ("spec", "metadata") if name in document)
    with pytest.raises(Exception, match=r"minReadySecond"):
        refuse({**document, part: {**document[part], "minReadySecond": 1}}, VERSIONS[-1])


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "monitoring"], ids=lambda folder: folder.name)
def test_kustomize_renders_what_is_listed_into_one_namespace(folder: Path) -> None:
    found = rendered(folder)
    kinds = sorted((d["kind"], re.sub(r"-[a-z0-9]{10}$", "", d["metadata"]["name"])) for d in found)
    listed = {(d["kind"], d["metadata"]["name"]) for d in documents(folder)}
    generated = {("ConfigMap", "mhpc-worker")} if folder == FOLDER else set()
    assert kinds == sorted(listed | generated)
    assert {d["metadata"].get("namespace", d["metadata"]["name"]) for d in found} == {"mhpc"}
    for document in found:
        refuse(document, VERSIONS[-1])


def test_a_change_of_the_configuration_is_a_change_of_the_pods() -> None:
    found = {d["kind"]: d for d in rendered(FOLDER)}
    name = found["ConfigMap"]["metadata"]["name"]
    assert name != "mhpc-worker"
    for kind in ("StatefulSet", "Deployment"):
        pod = found[kind]["spec"]["template"]["spec"]
        assert [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume] == [name]
        assert re.fullmatch(r"\S+/mhpc:\d+\.\d+\.\d+", pod["containers"][0]["image"])


# -- what the worker makes of it ---------------------------------------------------------------------------------------


@both
def test_a_pod_has_a_configuration_that_loads_and_the_name_that_stays_its_own(
    worker: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    for entry in container["env"]:
        monkeypatch.setenv(entry["name"], entry.get("value", "2"))  # as the pod would have it, or nearly
    settings = load_settings(FOLDER / "worker.toml")
    assert settings.worker.fleet
    assert (settings.worker.capacity == 0) == (worker["kind"] == "Deployment")  # scorers keep no line
    assert (settings.redis.username, settings.http.port) == ("worker", container["ports"][0]["containerPort"])
    named = {entry["name"]: entry.get("valueFrom", {}) for entry in container["env"]}
    assert named["MHPC_WORKER__NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert str(settings.snapshots.directory) in mounts
    assert container["args"] == ["run", "--config", "/etc/mhpc/config.toml"]
    (generator,) = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generator == {"name": "mhpc-worker", "files": ["config.toml=worker.toml"]}


def test_a_bucket_instead_of_the_volume_is_a_matter_of_uncommenting(tmp_path: Path) -> None:
    told = re.sub(r"^directory = .*\n", "", (FOLDER / "worker.toml").read_text(), flags=re.MULTILINE)
    path = tmp_path / "worker.toml"
    path.write_text(re.sub(r"^# (\w+ = )", r"\1", told, flags=re.MULTILINE))
    snapshots = load_settings(path, environ={}).snapshots
    assert (snapshots.directory, snapshots.cache) == ("s3://BUCKET/models", Path("/tmp/snapshots"))  # noqa: S108 - a pod's
    policy = re.sub(r"^    # ", "    ", (FOLDER / "network.yaml").read_text(), flags=re.MULTILINE)
    assert yaml.safe_load(policy)["spec"]["egress"][-1]["ports"] == [{"protocol": "TCP", "port": 443}]


def test_what_kubernetes_tells_of_services_a_worker_would_refuse() -> None:
    with pytest.raises(ConfigurationError, match="MHPC_KEEPERS_SERVICE_HOST"):
        load_settings(FOLDER / "worker.toml", environ={"MHPC_KEEPERS_SERVICE_HOST": "10.0.0.1"})
    assert [pod["enableServiceLinks"] for pod in PODS] == [False, False]


def test_probes_ask_for_pages_that_there_are() -> None:
    pages = TestClient(make_app(CollectorRegistry(), str, lambda: "line press-3: stopped", str))
    for container in CONTAINERS:
        asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert {pages.get(probe["path"]).status_code for probe in asked.values()} == {200}  # whatever one line has
        assert {probe["port"] for probe in asked.values()} == {port["name"] for port in container["ports"]}
        assert (asked["liveness"]["path"], asked["readiness"]["path"]) == ("/healthz", "/readyz?lines=0")


def test_a_worker_that_hangs_ends_itself_before_it_is_ended_from_outside() -> None:
    """Which would leave no traceback: the next one would hang by the same part."""
    for container in CONTAINERS:
        probe = container["livenessProbe"]
        assert (probe["failureThreshold"] - 1) * probe["periodSeconds"] > 2 * STALLED_SECONDS / SIGNS


def test_a_worker_is_given_as_long_to_end_as_elsewhere() -> None:
    unit = (ROOT / "deploy" / "systemd" / "mhpc-worker@.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert [pod["terminationGracePeriodSeconds"] for pod in PODS] == [int(seconds)] * 2


# -- rights ------------------------------------------------------------------------------------------------------------


def test_pods_have_the_images_user_and_no_rights() -> None:
    (uid, gid) = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)[0]
    for pod in PODS:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(uid), int(gid), int(gid))
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
    for container in CONTAINERS:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    assert BY_NAME["Namespace", "mhpc"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_file_holds_a_secret_and_the_password_is_where_the_worker_looks() -> None:
    assert [document for document in ALL if document["kind"] == "Secret"] == []
    path = Path(load_settings(FOLDER / "worker.toml", environ={}).redis.password_file)
    for pod in PODS:
        (secret,) = [volume for volume in pod["volumes"] if "secret" in volume]
        assert [item["path"] for item in secret["secret"]["items"]] == [path.name]
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == secret["name"]]
        assert (mount["mountPath"], mount["readOnly"]) == (str(path.parent), True)


def test_redis_port_is_one_that_the_network_lets_through() -> None:
    (_, redis) = BY_NAME["NetworkPolicy", "mhpc-workers"]["spec"]["egress"]
    url = load_settings(FOLDER / "worker.toml", environ={}).redis.url.get_secret_value()
    (host, port) = re.findall(r"^redis://[\w-]+\.([\w-]+)\.svc:(\d+)/", url)[0]
    assert redis["ports"] == [{"protocol": "TCP", "port": int(port)}]
    assert redis["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": host}


# -- what they select --------------------------------------------------------------------------------------------------


def test_what_selects_pods_selects_those_that_there_are() -> None:
    pods = [worker["spec"]["template"]["metadata"]["labels"] for worker in WORKERS]

    def selected(labels: dict[str, str]) -> int:
        return sum(labels.items() <= pod.items() for pod in pods)

    assert [selected(worker["spec"]["selector"]["matchLabels"]) for worker in WORKERS] == [1, 1]
    for name in ("mhpc-keepers", "mhpc-scorers"):
        assert selected(BY_NAME["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"]) == 1
    assert selected(BY_NAME["Service", "mhpc-keepers"]["spec"]["selector"]) == 1
    assert WORKERS[0]["spec"]["serviceName"] == "mhpc-keepers"
    assert selected(BY_NAME["NetworkPolicy", "mhpc-workers"]["spec"]["podSelector"]["matchLabels"]) == 2
    monitor = BY_NAME["PodMonitor", "mhpc"]["spec"]
    assert selected(monitor["selector"]["matchLabels"]) == 2
    assert pods[0][monitor["jobLabel"]] == "mhpc"  # the job of alerts, dashboards and queries


def test_a_node_that_is_drained_takes_one_keeper_at_a_time() -> None:
    budget = BY_NAME["PodDisruptionBudget", "mhpc-keepers"]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    assert WORKERS[0]["spec"]["replicas"] >= 2


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_what_scales_reads_figures_that_workers_export() -> None:
    known = {name: labels | POD_LABELS for name, labels in exported().items()}
    queries = [trigger["metadata"]["query"] for trigger in BY_NAME["ScaledObject", "mhpc-scorers"]["spec"]["triggers"]]
    assert [problems(query, known) for query in queries] == [[], []]
    assert "mhpc_stream_lag_entries" in queries[0]


def test_keda_alone_says_how_many_scorers_there_are() -> None:
    scaled = BY_NAME["ScaledObject", "mhpc-scorers"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": WORKERS[1]["metadata"]["name"]}
    assert "replicas" not in WORKERS[1]["spec"]
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    assert {trigger["metricType"] for trigger in scaled["triggers"]} == {"AverageValue"}  # what a fallback needs
