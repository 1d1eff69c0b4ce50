"""rediss:// against a real server with certificates made for the test."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.servers import started
from tests.worker.faults.servers import node_port
from tests.worker.helpers import eventually
from worker.errors import ConfigurationError, RedisUnreachableError
from worker.producer import connect_async
from worker.settings import RedisSettings
from worker.streams.client import connect

LOG = "redis.log"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607 - any openssl will do


def make_ca(folder: Path, name: str) -> None:
    files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    extensions = ["-addext", "keyUsage=critical,keyCertSign"]
    openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={name}", *files,
            *extensions)  # fmt: skip


def make_certificate(folder: Path, name: str, alternative: str) -> None:
    """NAME.crt and NAME.key, signed by the CA `ca`."""
    openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out",
            f"{name}.csr")  # fmt: skip
    (folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid,issuer\n")
    openssl(folder, "x509", "-req", "-days", "1", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on the PATH to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        make_ca(folder, name)
    make_certificate(folder, "server", "IP:127.0.0.1")
    make_certificate(folder, "elsewhere", "DNS:redis.example")
    make_certificate(folder, "client", "DNS:station-1")
    return folder


def tls_options(certificates: Path, name: str) -> list[str]:
    files = {"cert": f"{name}.crt", "key": f"{name}.key", "ca-cert": "ca.crt"}
    return [part for key, file in files.items() for part in (f"--tls-{key}-file", str(certificates / file))]


def serving(folder: Path, certificates: Path, name: str) -> Any:
    port = free_port()
    return port, started(folder, "--port", "0", "--tls-port", str(port), *tls_options(certificates, name), "--save", "")


@pytest.fixture
def port(tmp_path: Path, certificates: Path) -> Iterator[int]:
    """A server that speaks TLS alone, to clients with a certificate of `ca`."""
    port, server = serving(tmp_path, certificates, "server")
    with server as process:
        eventually(lambda: process.poll() is not None or "Ready to accept" in (tmp_path / LOG).read_text())
        if process.poll() is not None:
            pytest.skip(f"redis-server has no TLS: {(tmp_path / LOG).read_text().splitlines()[-1]}")
        yield port


def settings(certificates: Path, url: str, ca: str = "ca.crt", **files: str) -> RedisSettings:
    named = {"ca_file": ca, "cert_file": "client.crt", "key_file": "client.key", **files}
    return RedisSettings.model_validate(
        {"url": url, **{name: file and str(certificates / file) for name, file in named.items()}}
    )


def refusal(given: RedisSettings, kind: type[Exception] = RedisUnreachableError) -> str:
    with pytest.raises(kind) as caught:
        connect(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_sides_show_their_certificates(port: int, certificates: Path) -> None:
    for number in range(1, 31):  # each time the server's session tickets may come at another moment
        client: Any = connect(settings(certificates, f"rediss://127.0.0.1:{port}/0"))
        assert client.xadd("stream", {"a": "b"})
        assert client.xlen("stream") == number


def test_so_does_the_client_of_an_event_loop(port: int, certificates: Path) -> None:
    async def send() -> None:
        client = await connect_async(settings(certificates, f"rediss://127.0.0.1:{port}/0"))
        assert await client.xadd("stream", {"a": "b"})
        await client.aclose()
        with pytest.raises(RedisUnreachableError, match="certificate that does not hold"):
            await connect_async(settings(certificates, f"rediss://127.0.0.1:{port}/0", "other.crt"))

    asyncio.run(send())


@pytest.mark.parametrize("ca", ["other.crt", ""])
def test_a_server_whose_ca_is_not_trusted_is_refused(port: int, certificates: Path, ca: str) -> None:
    told = refusal(settings(certificates, f"rediss://127.0.0.1:{port}/0", ca))
    for part in (f"127.0.0.1:{port}", "certificate that does not hold", "redis.ca_file"):
        assert part in told


def test_a_certificate_for_another_host_is_refused(tmp_path: Path, port: int, certificates: Path) -> None:
    other, server = serving(tmp_path, certificates, "elsewhere")
    with server:
        given = settings(certificates, f"rediss://127.0.0.1:{other}/0")
        told = eventually(lambda: text if "does not hold" in (text := refusal(given)) else "")
    assert "name the host in redis.url as the certificate does" in told


def test_a_client_without_tls_is_refused(port: int) -> None:
    told = refusal(RedisSettings.model_validate({"url": f"redis://127.0.0.1:{port}/0"}))
    assert "is not reached" in told


def test_a_client_without_a_certificate_is_refused(port: int, certificates: Path) -> None:
    told = refusal(settings(certificates, f"rediss://127.0.0.1:{port}/0", cert_file="", key_file=""))
    assert "is not reached" in told


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"ca": "absent.crt"}, ["redis.ca_file", "absent.crt", "No such file"]),
        ({"ca": "ca.key"}, ["redis.ca_file", "ca.key"]),
        ({"cert_file": "absent.crt"}, ["redis.cert_file", "absent.crt", "No such file"]),
        ({"key_file": "server.key"}, ["redis.cert_file", "redis.key_file", "server.key"]),
    ],
)
def test_a_file_that_cannot_be_used_is_named(certificates: Path, files: dict[str, str], parts: list[str]) -> None:
    told = refusal(settings(certificates, "rediss://127.0.0.1:1/0", **files), ConfigurationError)
    assert [part for part in parts if part not in told] == []


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(certificates: Path) -> None:
    openssl(certificates, "rsa", "-aes256", "-passout", "pass:x", "-in", "client.key", "-out", "encrypted.key")
    given = settings(certificates, "rediss://127.0.0.1:1/0", key_file="encrypted.key")
    assert "not encrypted" in refusal(given, ConfigurationError)


def test_sentinels_and_the_master_that_they_name_are_reached_by_tls(
    port: int, certificates: Path, tmp_path: Path
) -> None:
    sentinel, folder = free_port(), tmp_path / "sentinel"
    folder.mkdir()
    configuration = folder / "sentinel.conf"
    configuration.write_text(f"tls-replication yes\nsentinel monitor plant 127.0.0.1 {port} 1\n")
    options = ["--port", "0", "--tls-port", str(sentinel), *tls_options(certificates, "server")]
    given = settings(certificates, f"rediss+sentinel://127.0.0.1:{sentinel}/plant")
    with started(folder, str(configuration), "--sentinel", *options):

        def reached() -> bool:
            try:
                return bool(connect(given).ping())
            except RedisUnreachableError:
                return False

        eventually(reached)
        untrusted = settings(certificates, f"rediss+sentinel://127.0.0.1:{sentinel}/plant", "other.crt")
        assert "redis.ca_file where their certificates do not hold" in refusal(untrusted)


def test_the_nodes_of_a_cluster_are_reached_by_tls(certificates: Path, tmp_path: Path) -> None:
    first, folder = node_port(), tmp_path / "node"
    folder.mkdir()
    options = [
        "--port",
        "0",
        "--tls-port",
        str(first),
        "--tls-cluster",
        "yes",
        "--cluster-enabled",
        "yes",
        "--save",
        "",
    ]
    given = settings(certificates, f"rediss+cluster://127.0.0.1:{first}")
    with started(folder, *options, *tls_options(certificates, "server")):
        node: Any = eventually(lambda: answering(settings(certificates, f"rediss://127.0.0.1:{first}/0")))
        node.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        client: Any = eventually(lambda: answering(given))
        eventually(lambda: b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO"))
        assert client.xadd("mhpc:{press-3}:images", {"a": "b"})
        assert "certificate that does not hold" in refusal(
            settings(certificates, given.url.get_secret_value(), "other.crt")
        )


def answering(given: RedisSettings) -> Any:
    """A client, or None while nobody answers."""
    try:
        return connect(given)
    except RedisUnreachableError:
        return None
