from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from worker.configuration import load_settings
from worker.console import access
from worker.console.access import Access, read_tokens, same_site
from worker.errors import ConfigurationError
from worker.settings import ConsoleSettings

TOKEN, OTHER = "ann-has-this-token", "bob-has-another-one"


def request(headers: dict[str, str] | list[tuple[str, str]] = {}, client: str = "127.0.0.1") -> Request:  # noqa: B006 - never written to
    pairs = headers.items() if isinstance(headers, dict) else headers
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw, "client": (client, 1)})


def known(**settings: Any) -> Access:
    tokens = {"ann": TOKEN, "bob": OTHER}
    return Access(ConsoleSettings.model_validate({"tokens": tokens, **settings}), 9109)


def bearer(token: str) -> Request:
    return request({"authorization": f"Bearer {token}"})


def test_a_token_tells_who_asks() -> None:
    who = known().who(bearer(OTHER))
    assert who is not None
    assert (who.name, who.by) == ("bob", "bearer")


@pytest.mark.parametrize("token", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 20])
def test_what_is_no_token_is_nobodys(token: str) -> None:
    assert known().who(bearer(token)) is None
    assert known().name_of(token) is None


def test_a_session_is_its_tokens_owner_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = known()
    cookie = {"cookie": f"{opened.cookie}={opened.session(TOKEN)}"}
    who = opened.who(request(cookie))
    assert who is not None
    assert (who.name, who.by) == ("ann", "session")
    assert known().who(request(cookie)) == who, "it outlasts a restart"
    monkeypatch.setattr(access, "SESSION_SECONDS", -1)
    assert opened.who(request({"cookie": f"{opened.cookie}={opened.session(TOKEN)}"})) is None


def test_a_session_cannot_be_made_longer_or_be_had_without_a_token() -> None:
    opened = known()
    ends, _, signature = opened.session(TOKEN).partition(".")
    for value in (
        f"{int(ends) + 1}.{signature}",
        f"{ends}.",
        f".{signature}",
        ends,
        "x.y",
        f"{ends}.{'0' * 64}",
        "²." + signature,
    ):
        assert opened.who(request({"cookie": f"{opened.cookie}={value}"})) is None
    withdrawn = Access(ConsoleSettings.model_validate({"tokens": {"bob": OTHER}}), 9109)
    assert withdrawn.who(request({"cookie": f"{opened.cookie}={ends}.{signature}"})) is None


def test_a_wrong_bearer_is_not_made_good_by_a_session() -> None:
    opened = known()
    headers = {"cookie": f"{opened.cookie}={opened.session(TOKEN)}", "authorization": "Bearer wrong"}
    assert opened.who(request(headers)) is None


def test_a_proxys_user_is_believed_from_the_proxy_alone() -> None:
    behind = known(user_header="X-Forwarded-User", proxies=["10.0.0.1"])
    who = behind.who(request({"x-forwarded-user": "eve"}, "10.0.0.1"))
    assert who is not None
    assert (who.name, who.by) == ("eve", "proxy")
    assert behind.who(request({"x-forwarded-user": "eve"}, "10.0.0.2")) is None
    assert known().who(request({"x-forwarded-user": "eve"})) is None, "no header is configured"
    twice = [("x-forwarded-user", "eve"), ("x-forwarded-user", "ann")]
    assert behind.who(request(twice, "10.0.0.1")) is None, "one of them is the client's own"


def test_without_a_token_one_is_made_for_this_run() -> None:
    alone = Access(ConsoleSettings(), 9109)
    assert len(alone.one_time) >= 24
    assert alone.who(bearer(alone.one_time))
    assert Access(ConsoleSettings(), 9109).one_time != alone.one_time
    assert not known().one_time
    assert not Access(ConsoleSettings(user_header="X-User"), 9109).one_time


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": "http://console:9109", "host": "console:9109"}, True),
        ({"origin": "http://elsewhere", "host": "console:9109"}, False),
        ({"origin": "null", "host": "console:9109"}, False),
        ({"origin": "null", "host": "console:9109", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "null", "host": "console:9109", "sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-origin", "origin": "http://elsewhere", "host": "console:9109"}, False),
        ({}, True),
    ],
)
def test_a_page_of_another_site_is_told_from_ours(headers: dict[str, str], same: bool) -> None:
    assert same_site(request(headers)) is same


def test_a_session_hands_back_what_its_page_carries_and_a_bearer_need_not() -> None:
    opened = known()
    session = request({"cookie": f"{opened.cookie}={opened.session(TOKEN)}"})
    who = opened.who(session)
    assert who is not None
    assert opened.refusal(session, who, opened.csrf(who)) is None
    for wrong in ("", "0" * 64, opened.csrf(who._replace(name="bob")), known().csrf(who)):
        refusal = opened.refusal(session, who, wrong)
        assert refusal is not None
        assert refusal[0] == 403
    assert opened.refusal(bearer(TOKEN), opened.who(bearer(TOKEN)), "") is None


def test_tokens_are_read_from_a_file_and_from_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who may press buttons\n\nann {TOKEN}\n  bob   {OTHER}  \n")
    assert read_tokens(ConsoleSettings(tokens_file=str(file))) == {"ann": TOKEN, "bob": OTHER}
    both = ConsoleSettings.model_validate({"tokens_file": str(file), "tokens": {"eve": "eve-has-a-third-one"}})
    assert set(read_tokens(both)) == {"ann", "bob", "eve"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"ann short\n", "line 1: the token of ann: 16 to 512 characters"),
        (b"ann\n", "line 1: the token of ann"),
        (b"<b> aaaaaaaaaaaaaaaaaaaa\n", "line 1: token name '<b>'"),
        (b"# none\n", "holds no token"),
        (b"\xff\xfe\n", "it is not UTF-8 text"),
        (f"ann {TOKEN}\nann {OTHER}\n".encode(), "ann stands twice"),
        (f"ann {TOKEN}\nbob {TOKEN}\n".encode(), "two names have the same token"),
    ],
)
def test_a_token_file_that_cannot_be_used_is_told_without_a_token(tmp_path: Path, text: bytes, told: str) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(text)
    with pytest.raises(ConfigurationError) as error:
        read_tokens(ConsoleSettings(tokens_file=str(file)))
    assert told in str(error.value)
    assert TOKEN not in str(error.value)


def test_a_token_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no/such/file cannot be read: No such file"):
        read_tokens(ConsoleSettings(tokens_file="no/such/file"))


@pytest.mark.parametrize(
    "tokens", [{"ann": "sh0rt!"}, {"a b": "sh0rt!-but-long-enough"}, {"ann": 5}, ["sh0rt!"], "sh0rt!"]
)
def test_a_configuration_with_bad_tokens_does_not_quote_them(tokens: object) -> None:
    with pytest.raises(ConfigurationError, match=r"console\.tokens") as error:
        load_settings(None, {"console": {"tokens": tokens}})
    assert "sh0rt!" not in str(error.value)
