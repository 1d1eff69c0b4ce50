"""deploy/compose.yaml: Compose takes it, its checks tell health, and it keeps secrets, ports and rights to itself."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from prometheus_client import CollectorRegistry

from tests.deploy.composing import ROOT, SECRETS, check_of, compose, composed, healthy, redis_of, with_secrets
from tests.worker.helpers import eventually
from worker.configuration import load_settings
from worker.http import HttpServer, make_app
from worker.settings import HttpSettings

SERVICES = {"redis", "worker", "console", "prometheus", "grafana"}

Service = dict[str, Any]


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_secrets(tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def services(deploy: Path) -> dict[str, Service]:
    return {**composed(deploy)["services"], **composed(deploy, "gpu")["services"]}


# -- what Compose makes of it ------------------------------------------------------------------------------------------


def test_a_profile_decides_which_worker_there_is(deploy: Path) -> None:
    assert composed(deploy)["services"].keys() == SERVICES
    on_gpu = composed(deploy, "gpu")["services"]
    assert on_gpu.keys() == SERVICES - {"worker"} | {"worker-gpu"}
    (device,) = on_gpu["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert on_gpu["worker-gpu"]["networks"]["figures"]["aliases"] == ["worker"]  # where Prometheus looks for it


def test_compose_refuses_what_it_does_not_know(deploy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "deploy"
    shutil.copytree(deploy, copy)
    text = (copy / "compose.yaml").read_text()
    (copy / "compose.yaml").write_text(text.replace("cap_drop", "cap_dropp"))
    ended = compose(copy, "config")
    assert ended.returncode
    assert "cap_dropp" in ended.stderr


def test_every_service_has_few_rights_and_is_reached_from_this_machine_alone(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert (service["cap_drop"], service.get("cap_add", [])) == (["ALL"], []), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert int(service["mem_limit"]) > 0, name
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}, name


def test_every_image_has_a_version(services: dict[str, Service]) -> None:
    for name, service in services.items():
        version = service["image"].partition(":")[2]
        assert version == "local" if "build" in service else re.fullmatch(r"v?\d+\.\d+\.\d+", version), name


def test_every_service_tells_its_health_and_is_waited_for(services: dict[str, Service]) -> None:
    assert {name for name, service in services.items() if service["healthcheck"]["test"]} == services.keys()
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    for name in ("worker", "worker-gpu", "console"):
        assert waits[name]["redis"]["condition"] == "service_healthy"
    assert services["worker"]["stop_grace_period"] == "1m0s"


def test_what_is_mounted_or_built_from_exists(deploy: Path, services: dict[str, Service]) -> None:
    for name, service in services.items():
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), (name, volume)
            assert volume["type"] == "volume" or volume["read_only"], (name, volume)
        if "build" in service:
            assert service["build"]["context"] == str(deploy.parent)
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_secrets_are_files_and_stand_nowhere_else(deploy: Path, services: dict[str, Service]) -> None:
    known = composed(deploy)["secrets"]
    for secret in known.values():
        assert Path(secret["file"]).is_file()
    values = {text for path in (deploy / "secrets").iterdir() for text in path.read_text().split() if len(text) == 64}
    assert len(values) == 6
    told = str(services)
    assert [value for value in values if value in told] == []
    assert services["worker"]["secrets"] == [{"source": "redis_worker", "target": "/run/secrets/redis_worker"}]


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_secrets_are_made_once_and_read_by_nobody_else(deploy: Path) -> None:
    folder = deploy / "secrets"
    assert {path.name for path in folder.iterdir()} == SECRETS
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "CHANGE-ME" not in (folder / "users.acl").read_text()
    assert re.fullmatch(r"ann [0-9a-f]{64}\n", (folder / "console_tokens").read_text())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = subprocess.run([str(deploy / "secrets.sh")], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.count("exists: nothing is done; delete it")) == (1, 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_user_that_the_script_does_not_know_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "deploy"
    shutil.copytree(ROOT / "deploy", copy, ignore=shutil.ignore_patterns("secrets"))
    with (copy / "redis" / "users.acl").open("a") as file:
        file.write("user new on >CHANGE-ME-NEW -@all\n")
    ended = subprocess.run([str(copy / "secrets.sh")], capture_output=True, text=True, check=False)
    assert (ended.returncode, "CHANGE-ME-NEW" in ended.stderr) == (1, True)
    assert [path.name for path in copy.iterdir() if path.name.startswith("secrets") and path.is_dir()] == []


@pytest.mark.parametrize("name", ["CORP\\anna", "anna b", "anna:x", "änna"])
def test_a_name_that_the_console_would_not_take_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    copy = tmp_path / "deploy"
    shutil.copytree(ROOT / "deploy", copy, ignore=shutil.ignore_patterns("secrets"))
    before = sorted(copy.iterdir())
    command = [str(copy / "secrets.sh"), name]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    assert ended.returncode == 1
    assert "expected letters, digits and _.@- alone; name one: deploy/secrets.sh NAME" in ended.stderr
    assert sorted(copy.iterdir()) == before


@pytest.mark.parametrize(("file", "user"), [("worker.toml", "worker"), ("console.toml", "operator")])
def test_the_configurations_load_and_name_what_is_mounted(services: dict[str, Service], file: str, user: str) -> None:
    settings = load_settings(ROOT / "deploy" / "config" / file, environ={})
    assert settings.redis.url.get_secret_value().startswith("redis://redis:")
    assert settings.redis.username == user
    service = services["worker" if file == "worker.toml" else "console"]
    wanted = {settings.redis.password_file, settings.console.tokens_file} - {""}
    assert wanted == {secret["target"] for secret in service["secrets"]}
    (folder,) = (volume for volume in service["volumes"] if volume["type"] == "bind")
    assert service["command"][-1] == f"{folder['target']}/{file}"
    assert Path(folder["source"]).name == "config"
    port = settings.http.port if file == "worker.toml" else settings.console.port
    assert [int(published["target"]) for published in service["ports"]] == [port]


def test_what_redis_keeps_of_a_line_leaves_room_for_as_much_again() -> None:
    streams = load_settings(ROOT / "deploy" / "config" / "worker.toml", environ={}).streams
    (limit,) = re.findall(r"^maxmemory (\d+)gb$", (ROOT / "deploy/redis/redis.conf").read_text(), re.MULTILINE)
    result = 1024  # with a heat map of 28 x 28: docs/operate.md
    most = streams.scores_max * result + streams.review_bytes + streams.dead_max * streams.payload_bytes
    assert most < int(limit) * 2**30 / 2


# -- health, by the checks themselves ----------------------------------------------------------------------------------


def test_redis_starts_as_it_is_configured_and_its_check_tells_when_it_is_gone(deploy: Path, tmp_path: Path) -> None:
    with redis_of(deploy, tmp_path) as (port, process):
        here = {"/run/secrets": str(deploy / "secrets"), "redis-cli": f"redis-cli -p {port}"}
        eventually(lambda: healthy(check_of("redis"), here))
        password = (deploy / "secrets" / "redis_producer").read_text().strip()
        producer = redis.Redis(port=port, username="producer", password=password, protocol=2, driver_info=None)
        assert producer.xadd("mhpc:{press-3}:images", {"batch": b"x"})
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(port=port, protocol=2, driver_info=None).ping()
        assert list((tmp_path / "appendonlydir").iterdir())
        process.terminate()
        process.wait(30)
        assert not healthy(check_of("redis"), here)


@pytest.mark.parametrize(
    ("service", "alive", "ready", "well"),
    [
        ("worker", "", "", True),
        ("worker", "no turn of the work loop", "", False),
        ("worker", "", "Redis is not reached", False),
        ("console", "", "", True),
        ("console", "", "Redis is not reached", False),
    ],
)
def test_a_worker_or_console_that_is_not_well_fails_its_check(service: str, alive: str, ready: str, well: bool) -> None:
    server = HttpServer(HttpSettings(port=0), make_app(CollectorRegistry(), lambda: alive, lambda: ready, str))
    server.start()
    try:
        port = "9108" if service == "worker" else "9109"
        httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=60)  # it serves: the check itself waits 3 s
        assert healthy(check_of(service), {f":{port}/": f":{server.port}/"}) == well
    finally:
        server.stop()
