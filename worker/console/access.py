"""Who asks: by a token, by a session that a token began, or by what a reverse proxy says of its user."""

import hashlib
import hmac
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from starlette.requests import Request

from worker.errors import ConfigurationError
from worker.runtime.environment import user_name
from worker.settings import ConsoleSettings, check_token

SESSION_SECONDS = 12 * 3600
CROSS_SITE = "the request comes from another site; open the console itself, and press the button there"


class Who(NamedTuple):
    """A person or a program that may change something; `by` says how it is known."""

    name: str
    by: Literal["bearer", "session", "proxy"]


class Access:
    """Knows the tokens; keeps no list of sessions, so that they outlast a restart, as their token does.

    Attributes:
        one_time: the token that was made because none was configured, else "".
    """

    def __init__(self, settings: ConsoleSettings, port: int) -> None:
        self.settings = settings
        self.cookie = f"mhpc-console-{port}"  # cookies know no ports: two consoles of a host must not share one
        self._tokens = read_tokens(settings)
        self.one_time = ""
        if not self._tokens and not settings.user_header:
            self.one_time = secrets.token_urlsafe(24)
            self._tokens = {user_name(): self.one_time}
        self._secret = secrets.token_bytes(32)

    def who(self, request: Request) -> Who | None:
        """Who asks, or None for anybody."""
        if user := self._proxys_user(request):
            return Who(user, "proxy")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":  # a wrong one is not made good by a session beside it
            name = self.name_of(token.strip())
            return Who(name, "bearer") if name else None
        name = self._name_of_session(request.cookies.get(self.cookie, ""))
        return Who(name, "session") if name else None

    def name_of(self, token: str) -> str | None:
        """The name of a token, found in the same time whichever it is."""
        found = None
        for name, known in self._tokens.items():
            if _same(token, known):
                found = name
        return found

    def session(self, token: str) -> str:
        """The value of a session's cookie, for a token that is known."""
        ends = f"{time.time() + SESSION_SECONDS:.0f}"
        return f"{ends}.{_signed(token.encode(), f'session {ends}')}"

    def csrf(self, who: Who) -> str:
        """What a page of this user's hands back with what it asks for; a page of another site cannot read it."""
        return _signed(self._secret, f"csrf {who.by} {who.name}")

    def refusal(self, request: Request, who: Who | None, csrf: str) -> tuple[int, str] | None:
        """Why a request that changes something is refused: the status and a text; None if it is not."""
        if not same_site(request):
            return 403, CROSS_SITE
        if who is None:
            sent = "authorization" in request.headers
            return 401, "this token is not known" if sent else "log in with a token to change anything"
        if who.by != "bearer" and not _same(csrf, self.csrf(who)):
            return 403, "this page is older than the console; reload it, and press again"
        return None

    def from_proxy(self, request: Request) -> bool:
        """Whether what the request says of its way here can be believed."""
        return request.client is not None and request.client.host in self.settings.proxies

    def _proxys_user(self, request: Request) -> str:
        header = self.settings.user_header
        if not header or not self.from_proxy(request):
            return ""
        users = request.headers.getlist(header)
        user = users[0].strip() if len(users) == 1 else ""  # of two, one is what the client itself has sent
        with suppress(UnicodeDecodeError):  # a proxy sends UTF-8 as a rule, which Starlette reads as Latin-1
            user = user.encode("latin-1").decode()
        return user if user.isprintable() and len(user) <= 128 else ""

    def _name_of_session(self, cookie: str) -> str | None:
        ends, _, signature = cookie.partition(".")
        found = None
        for name, token in self._tokens.items():
            if _same(signature, _signed(token.encode(), f"session {ends}")):
                found = name
        return found if found and time.time() < int(ends) else None  # a number, since the signature holds


def same_site(request: Request) -> bool:
    """Whether the browser says that a page of this console asks; a program that says nothing of it is no browser."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = request.headers.get("origin")
    if site is not None and origin == "null":  # a form of ours, since its page sends no referrer
        return True
    return origin is None or origin.partition("://")[2] == request.headers.get("host", "")


def _same(one: str, other: str) -> bool:
    """Compared by digests: neither length nor beginning of the known one shows in the time."""
    return hmac.compare_digest(*(hashlib.sha256(text.encode(errors="replace")).digest() for text in (one, other)))


def _signed(key: bytes, text: str) -> str:
    return hmac.new(key, f"mhpc console {text}".encode(errors="replace"), hashlib.sha256).hexdigest()


def read_tokens(settings: ConsoleSettings) -> dict[str, str]:
    """All tokens by their names.

    Raises:
        ConfigurationError: tokens_file cannot be used, or a name or a token stands twice; no token is quoted.
    """
    tokens = {name: token.get_secret_value() for name, token in settings.tokens.items()}
    if settings.tokens_file:
        for name, token in _lines_of(Path(settings.tokens_file)):
            if name in tokens:
                raise ConfigurationError(f"console.tokens_file {settings.tokens_file}: {name} stands twice")
            tokens[name] = token
    if len(set(tokens.values())) < len(tokens):
        raise ConfigurationError("console.tokens: two names have the same token; give each one of its own")
    return tokens


def _lines_of(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"  # its own text would quote the bytes
        raise ConfigurationError(
            f"console.tokens_file {path} cannot be read: {why}; expected lines NAME TOKEN"
        ) from None
    found = []
    for number, line in enumerate(lines, start=1):
        name, _, token = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        try:
            check_token(name, token.strip())
        except ValueError as error:
            raise ConfigurationError(f"console.tokens_file {path}, line {number}: {error}") from None
        found.append((name, token.strip()))
    if not found:
        raise ConfigurationError(f"console.tokens_file {path} holds no token; expected lines NAME TOKEN")
    return found
