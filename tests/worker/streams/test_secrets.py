"""A password from a file: used, and shown nowhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import ValidationError

from tests.conftest import PrivateRedis
from worker.configuration import load_settings
from worker.errors import ConfigurationError, RedisUnreachableError
from worker.producer import connect as connect_producer
from worker.settings import RedisSettings, Settings
from worker.streams.client import connect
from worker.views import connect as connect_view

PASSWORD = "hunter2"  # noqa: S105 - of a server that lives for one test


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "redis-password"
    path.write_text(f"{PASSWORD}\n")
    return path


@pytest.fixture
def locked(private_redis: PrivateRedis) -> PrivateRedis:
    """A server with a password for all, and a user of its own."""
    admin = redis.Redis(port=private_redis.port)
    admin.acl_setuser("camera", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+@all"])
    admin.config_set("requirepass", PASSWORD)
    return private_redis


def settings(**fields: Any) -> RedisSettings:
    return RedisSettings.model_validate(fields)


def test_the_file_opens_the_server_for_the_worker_for_people_and_for_a_producer(
    locked: PrivateRedis, secret: Path
) -> None:
    given = settings(url=locked.url, password_file=str(secret))
    assert connect(given).ping()
    assert connect_view(Settings(redis=given)).ping()
    assert connect_producer(given).ping()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{port}/0", "redis://:hunter2@127.0.0.1:{port}/0"])
def test_a_user_of_the_settings_logs_in(locked: PrivateRedis, secret: Path, url: str) -> None:
    file = {} if PASSWORD in url else {"password_file": str(secret)}
    client: Any = connect(settings(url=url.format(port=locked.port), username="camera", **file))
    assert client.acl_whoami() == "camera"


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_an_end_of_line_is_no_part_of_it(locked: PrivateRedis, secret: Path, ending: str) -> None:
    secret.write_bytes(f"{PASSWORD}{ending}".encode())
    assert connect(settings(url=locked.url, password_file=str(secret))).ping()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hunter2\nhunter3\n", "is several lines"),
        (b"hunter2\xff", "is not UTF-8"),
    ],
)
def test_a_file_that_holds_no_password_is_named_and_not_shown(
    locked: PrivateRedis, secret: Path, content: bytes | None, told: str
) -> None:
    secret.unlink() if content is None else secret.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        connect(settings(url=locked.url, password_file=str(secret)))
    text = str(caught.value)
    for part in ("redis.password_file", str(secret), told):
        assert part in text
    assert "hunter" not in text
    assert "\n" not in text


def test_a_file_that_cannot_be_opened_is_named(locked: PrivateRedis, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        connect(settings(url=locked.url, password_file=str(tmp_path)))


def test_a_password_that_the_server_does_not_take_is_not_shown(locked: PrivateRedis, secret: Path) -> None:
    secret.write_text("hunter3")
    with pytest.raises(RedisUnreachableError, match="refuses") as caught:
        connect(settings(url=locked.url, password_file=str(secret)))
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"url": "redis://:hunter2@h", "password_file": "/secret"}, "a password stands in url, and password_file"),
        ({"url": "redis://u:hunter2@h", "password_file": "/secret"}, "a password stands in url, and password_file"),
        ({"url": "redis://h?password=hunter2", "password_file": "/secret"}, "a password stands in url"),
        ({"url": "redis://u:hunter2@h", "username": "v"}, "a user stands in url, and username"),
        ({"url": "redis://u@h", "username": "v"}, "a user stands in url, and username"),
        ({"url": "redis://:hunter2@h", "ca_file": "/ca"}, "must start with rediss"),
        ({"url": "rediss://:hunter2@h", "cert_file": "/cert"}, "go together"),
    ],
)
def test_what_contradicts_itself_is_refused_with_no_password_in_the_text(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, {"redis": fields})
    assert "command line: redis: " in str(caught.value)
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValidationError):
        settings(**fields)


def test_the_settings_show_no_password(locked: PrivateRedis, secret: Path) -> None:
    loaded = load_settings(None, {"redis": {"url": locked.url, "password_file": str(secret)}})
    client = connect(loaded.redis)
    for shown in (repr(loaded), str(loaded), loaded.model_dump_json(), repr(client.ping), str(loaded.redis)):
        assert PASSWORD not in shown


def test_check_shows_no_password(locked: PrivateRedis, secret: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "MHPC_REDIS__URL": locked.url, "MHPC_REDIS__PASSWORD_FILE": str(secret)}
    environment |= {"MHPC_LINES": '[{"name": "a"}]', "MHPC_SNAPSHOTS__DIRECTORY": str(tmp_path), "MHPC_HTTP__PORT": "0"}
    command = [sys.executable, "-m", "worker", "check"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    secret.write_text("hunter3")
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert "refuses" in refused.stderr
    assert "hunter" not in ended.stdout + refused.stdout + refused.stderr
