"""docs/operate.md does what it says: files are installed, alerts are sent on, a backup brings a line back."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.conftest import PrivateRedis
from tests.deploy.composing import composed, with_secrets
from tests.deploy.test_prometheus import FOLDER, told
from tests.docs.pages import ROOT, blocks, commands
from tests.worker.helpers import eventually, small_settings
from tests.worker.playing import answered, in_phase, send
from tests.worker.turning import running
from worker.line import SCORING
from worker.settings import Settings
from worker.streams.line_streams import LineStreams

PAGE = ROOT / "docs" / "operate.md"
LINE = "press-3"


def shown(beginning: str) -> list[str]:
    """The page's commands that begin so."""
    found = [text for block in blocks(PAGE) for text in commands(block) if text.startswith(beginning)]
    assert found, beginning
    return found


def run(command: str, folder: Path, given: str = "") -> None:
    subprocess.run(["/bin/sh", "-ec", command], cwd=folder, input=given, text=True, check=True, timeout=60)


def test_all_that_the_units_name_is_installed(tmp_path: Path) -> None:
    (tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    for command in shown("install "):
        run(command.replace("/etc", f"{tmp_path}/etc"), ROOT, "sesame\n")
    installed = {path.relative_to(tmp_path): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    etc, units = Path("etc/mhpc"), Path("etc/systemd/system")
    for name in ("redis-password", "redis-password-console", "console-tokens"):
        assert installed[etc / name] == 0o600
        assert (tmp_path / etc / name).read_text() == "sesame\n"
    named = {
        word.replace("%i", "station-1")
        for unit in (tmp_path / units).rglob("*.*")
        if unit.is_file()
        for word in unit.read_text().replace(":", " ").split()
        if word.startswith("/etc/mhpc/") and not word.endswith(",")
    }
    assert {f"/{path}" for path in installed if path.parent == etc} == named


def test_a_drop_in_is_followed_by_what_makes_it_hold() -> None:
    (block,) = (commands(block) for block in blocks(PAGE) if "gpu.conf" in block.text)
    assert [command.split()[:2] for command in block[1:]] == [["systemctl", "daemon-reload"], ["systemctl", "restart"]]
    assert block[2].split()[2] in block[0]


def test_each_command_names_the_worker_that_its_profile_has(tmp_path: Path) -> None:
    named = re.findall(
        r"`docker compose -f deploy/compose.yaml (?:--profile (\w+) )?\w+ .*?\b(worker[a-z-]*)", PAGE.read_text()
    )
    assert set(named) == {("", "worker"), ("gpu", "worker-gpu")}
    deploy = with_secrets(tmp_path)
    for profile, service in named:
        assert service in composed(deploy, profile)["services"]


def test_prometheus_takes_the_alertmanager_that_is_shown(tmp_path: Path) -> None:
    if not (promtool := shutil.which("promtool")):
        pytest.skip("no promtool on the PATH; Debian's package prometheus has it")
    (snippet,) = (block.text for block in blocks(PAGE) if block.language == "yaml")
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    whole = (FOLDER / "prometheus.yml").read_text() + snippet
    assert yaml.safe_load(whole)["alerting"]
    (tmp_path / "prometheus.yml").write_text(whole)
    ended = told(promtool, "check", "config", tmp_path / "prometheus.yml")
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def settings(tmp_path: Path, private_redis: PrivateRedis) -> Callable[[], Settings]:
    def settings() -> Settings:
        snapshots: dict[str, Any] = {"directory": tmp_path / "snapshots", "every_images": 8, "every_seconds": 0.2}
        return small_settings(LINE, redis={"url": private_redis.url}, snapshots=snapshots)

    return settings


def test_a_backup_that_was_taken_at_work_brings_the_line_back_on_an_empty_redis(
    settings: Callable[[], Settings], private_redis: PrivateRedis, tmp_path: Path
) -> None:
    client = redis.Redis(port=private_redis.port, protocol=2)
    (backup,) = (command.replace("/var/lib/mhpc", str(tmp_path)) for command in shown("tar "))
    with running(settings()):
        send(client, LINE, 1, 36)
        eventually(lambda: in_phase(client, LINE, SCORING))
        model = answered(client, LINE, 36) and LineStreams(client, LINE).state()["model"]
        eventually(lambda: len(list((tmp_path / "snapshots" / LINE).glob("*.safetensors"))) <= 3)  # it has pruned
        run(backup, tmp_path)
    shutil.rmtree(tmp_path / "snapshots")
    private_redis.kill()
    private_redis.start()
    run("tar -xzf snapshots.tar.gz", tmp_path)
    with running(settings()):
        send(client, LINE, 37, 40)
        results = answered(client, LINE, 4)
    assert {result["phase"] for result in results} == {SCORING}
    assert all(result["score"] is not None and result["model"] >= model for result in results)
