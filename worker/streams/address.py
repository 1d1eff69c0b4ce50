"""Where Redis is and how it is spoken to: the [redis] table as redis-py's options, each connection without retries."""

import ssl
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from worker.errors import ConfigurationError
from worker.settings import RedisSettings

CONNECT_SECONDS = 5.0
REPLY_SECONDS = 15.0  # longer than any BLOCK
SENTINEL_PORT, CLUSTER_PORT = 26379, 6379
SENTINEL_LOGIN = ("sentinel_username", "sentinel_password", "sentinel_password_file")


class Address(NamedTuple):
    """How Redis is reached.

    Attributes:
        options: of a connection to a server.
        sentinels: host and port of those who are asked for the master, if any are.
        master: its name there.
        sentinel_options: of a connection to a sentinel.
        cluster: host and port of some nodes of a Cluster, if it is one.
        secure: whether by TLS.
    """

    options: dict[str, Any]
    sentinels: list[tuple[str, int]]
    master: str
    sentinel_options: dict[str, Any]
    cluster: list[tuple[str, int]]
    secure: bool


def address(settings: RedisSettings) -> Address:
    """Read the [redis] table, with the files that it names.

    Raises:
        ConfigurationError: a file that cannot be used.
        ValueError: the url is none; the text may quote a password.
    """
    url = settings.url.get_secret_value()
    secure = url.startswith("rediss")
    hosts, master, asked, kind = list[tuple[str, int]](), "", dict[str, str](), ""
    if "+" in url.partition("://")[0]:
        kind, url, hosts, path = _of_several(url)
        if kind == "sentinel":
            url, master = _by_sentinel(url, path)
            url, asked = _sentinel_login(url)
    parse: Any = parse_url  # redis-py does not annotate it
    given: dict[str, Any] = parse(url)
    if hosts:
        given = {name: value for name, value in given.items() if name not in ("host", "port", "connection_class")}
        given["ssl"] = secure
    if kind == "cluster" and given.pop("db", 0):
        raise ValueError("a Cluster has database 0 alone")
    certificates = _certificates(settings) if secure else {}
    options = {**_no_retries(REPLY_SECONDS), **given, **_login(settings), **certificates}
    tls = {name: value for name, value in options.items() if name == "ssl" or name.startswith("ssl_")}
    return Address(
        options,
        sentinels=hosts if kind == "sentinel" else [],
        master=master,
        sentinel_options={**tls, **_no_retries(CONNECT_SECONDS), **asked},  # it answers at once or not at all
        cluster=hosts if kind == "cluster" else [],
        secure=secure,
    )


def shown(url: str) -> str:
    """The address without user, password and options (one of which is a password, too)."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _no_retries(seconds: float) -> dict[str, Any]:
    """RESP2 keeps the replies' shapes the same for all servers; a client's name in CLIENT SETINFO would be a right."""
    return {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": seconds,
        "socket_connect_timeout": CONNECT_SECONDS,
        "driver_info": None,
    }


def _of_several(url: str) -> tuple[str, str, list[tuple[str, int]], str]:
    """What they are, the url that it would be with one server, their hosts and ports, and its path."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    login, at, hosts = parts.netloc.rpartition("@")
    if not all(hosts.split(",")):
        raise ValueError("expected HOST:PORT[,HOST:PORT...]")
    port = SENTINEL_PORT if kind == "sentinel" else CLUSTER_PORT
    single = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return (
        kind,
        urlunsplit((scheme, f"{login}{at}localhost", parts.path, parts.query, "")),
        [(host.hostname or "", host.port or port) for host in single],
        parts.path.strip("/"),
    )


def _by_sentinel(url: str, path: str) -> tuple[str, str]:
    """The url without the master's name, and that name."""
    master, _, database = path.partition("/")
    if not master or not (database or "0").isdigit():
        raise ValueError("expected HOST:PORT[,HOST:PORT...]/MASTER[/DB]")
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}")), master


def _sentinel_login(url: str) -> tuple[str, dict[str, str]]:
    """The url without what sentinels ask for, and that; the servers' user and password are none of their concern."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    given = {name: value for name, value in query if name in SENTINEL_LOGIN}
    rest = urlencode([(name, value) for name, value in query if name not in SENTINEL_LOGIN])
    login = {name.removeprefix("sentinel_"): value for name, value in given.items() if name != SENTINEL_LOGIN[2]}
    if SENTINEL_LOGIN[2] in given:
        if "password" in login:
            raise ConfigurationError(
                "redis.url has sentinel_password and sentinel_password_file; leave one of them out"
            )
        login["password"] = _password(Path(given[SENTINEL_LOGIN[2]]), "sentinel_password_file")
    return urlunsplit(parts._replace(query=rest)), login


def _login(settings: RedisSettings) -> dict[str, str]:
    login = {"username": settings.username} if settings.username else {}
    if settings.password_file:
        login["password"] = _password(Path(settings.password_file), "redis.password_file")
    return login


def _password(path: Path, what: str) -> str:
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(
            f"{what} {path} cannot be read: {error.strerror}; name a file that holds the password alone, "
            "and that this user may read"
        ) from None
    except UnicodeDecodeError:  # its text quotes the bytes
        raise ConfigurationError(f"{what} {path} is not UTF-8 text; expected the password alone") from None
    if not password or "\n" in password:
        came = "several lines" if password else "empty"
        raise ConfigurationError(f"{what} {path} is {came}; expected the password alone, on one line")
    return password


def _certificates(settings: RedisSettings) -> dict[str, str]:
    """Tried here, since redis-py would name none of the files."""
    context = ssl.create_default_context()
    ca, certificate, key = settings.ca_file, settings.cert_file, settings.key_file
    try:
        if ca:
            context.load_verify_locations(ca)
    except OSError as error:  # of which ssl.SSLError is one
        raise ConfigurationError(
            f"redis.ca_file {ca} cannot be used: {_why(error)}; expected PEM certificates"
        ) from None
    try:
        if certificate:
            context.load_cert_chain(certificate, key, password="")  # an encrypted key would ask on the terminal
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"redis.cert_file {certificate} with redis.key_file {key} cannot be used: {_why(error)}; "
            "expected a certificate in PEM and its own key, not encrypted"
        ) from None
    named = {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key}
    return {name: path for name, path in named.items() if path}


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
