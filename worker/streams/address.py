"""Where Redis is and how it is spoken to: the [redis] table as redis-py's options, each connection without retries."""

import ssl
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from worker.errors import ConfigurationError
from worker.settings import RedisSettings

CONNECT_SECONDS = 5.0
REPLY_SECONDS = 15.0  # longer than any BLOCK
SENTINEL_PORT = 26379


class Address(NamedTuple):
    """Options of a connection, and who is asked for the master, if anybody is."""

    options: dict[str, Any]
    sentinels: list[tuple[str, int]]
    master: str

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """A sentinel answers at once or not at all; it is asked without the servers' user and password."""
        own = {name: value for name, value in self.options.items() if name == "ssl" or name.startswith("ssl_")}
        return {**own, **_no_retries(CONNECT_SECONDS)}


def address(settings: RedisSettings) -> Address:
    """Read the [redis] table, with the files that it names.

    Raises:
        ConfigurationError: a file that cannot be used.
        ValueError: the url is none; the text may quote a password.
    """
    url = settings.url.get_secret_value()
    secure = url.startswith("rediss")
    sentinels, master = list[tuple[str, int]](), ""
    if "+sentinel://" in url:
        url, sentinels, master = _by_sentinel(url)
    parse: Any = parse_url  # redis-py does not annotate it
    given: dict[str, Any] = parse(url)
    if sentinels:
        given = {name: value for name, value in given.items() if name not in ("host", "port", "connection_class")}
        given["ssl"] = secure
    certificates = _certificates(settings) if secure else {}
    return Address({**_no_retries(REPLY_SECONDS), **given, **_login(settings), **certificates}, sentinels, master)


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


def _by_sentinel(url: str) -> tuple[str, list[tuple[str, int]], str]:
    """The url that it would be with one server, the sentinels, and the master's name."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    master, _, database = parts.path.strip("/").partition("/")
    if not master or not all(hosts.split(",")) or not (database or "0").isdigit():
        raise ValueError("expected HOST:PORT[,HOST:PORT...]/MASTER[/DB]")
    single = [urlsplit(f"//{host}") for host in hosts.split(",")]
    sentinels = [(host.hostname or "", host.port or SENTINEL_PORT) for host in single]
    scheme = parts.scheme.removesuffix("+sentinel")
    return urlunsplit((scheme, f"{login}{at}localhost", f"/{database}", parts.query, "")), sentinels, master


def _login(settings: RedisSettings) -> dict[str, str]:
    login = {"username": settings.username} if settings.username else {}
    if settings.password_file:
        login["password"] = _password(Path(settings.password_file))
    return login


def _password(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(
            f"redis.password_file {path} cannot be read: {error.strerror}; name a file that holds the password alone, "
            "and that this user may read"
        ) from None
    except UnicodeDecodeError:  # its text quotes the bytes
        raise ConfigurationError(f"redis.password_file {path} is not UTF-8 text; expected the password alone") from None
    if not password or "\n" in password:
        came = "several lines" if password else "empty"
        raise ConfigurationError(f"redis.password_file {path} is {came}; expected the password alone, on one line")
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
