"""What holds for every answer, and for every request that would change something."""

import re
from collections.abc import Callable

import httpx
import pytest

from tests.worker.console.site import BEARER, TOKEN, Filled, Site, tags_of
from worker.console.guard import host_name, hosts_of
from worker.settings import ConsoleSettings


@pytest.mark.parametrize("path", ["/", "/login", "/healthz", "/static/base.css", "/static/theme.js", "/nothing"])
def test_every_answer_leaves_a_browser_no_room_for_mischief(site: Site, path: str) -> None:
    headers = site.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_no_page_has_a_script_or_a_style_of_its_own_or_names_another_host(site: Site, filled: Filled) -> None:
    site.log_in()
    key = filled.flagged()
    for path in ("/", "/login", f"/lines/{filled.line}", f"/lines/{filled.line}/review/{key}", "/nothing"):
        for tag, attributes in tags_of(site.get(path)):
            assert tag != "style"
            assert tag != "script" or "src" in attributes
            assert not [name for name in attributes if name == "style" or name.startswith("on")]
            for address in map(attributes.get, ("src", "href", "action")):
                assert address is None or re.match(r"#|/(?!/)", address)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", "localhost.evil"]
)
def test_on_the_loopback_another_hosts_name_is_refused(site: Site, host: str) -> None:
    for path in ("/", "/healthz", "/static/base.css"):
        answer = site.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "console.hosts" in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9109", "127.0.0.1:1", "[::1]:9109"])
def test_the_loopbacks_own_names_are_taken(site: Site, host: str) -> None:
    assert site.get("/healthz", headers={"host": host}).status_code == 200


def test_names_that_are_configured_are_taken_and_elsewhere_any_is_if_none_is() -> None:
    assert "console.plant" in hosts_of(ConsoleSettings(hosts=("Console.Plant",)))
    assert hosts_of(ConsoleSettings(host="0.0.0.0")) == frozenset()  # noqa: S104 - what people configure
    assert "console.plant" in hosts_of(ConsoleSettings(host="0.0.0.0", hosts=("console.plant",)))  # noqa: S104 - what people configure
    assert [host_name(text) for text in ("a:1", "[::1]:9", "A", "")] == ["a", "::1", "a", ""]


def test_who_has_no_token_may_look_and_change_nothing(site: Site, filled: Filled) -> None:
    assert site.get(f"/lines/{filled.line}").status_code == 200
    assert re.search(r'<button id="pause"[^>]* disabled', site.get(f"/lines/{filled.line}").text)
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
    ):
        answer = site.tell(filled.line, "pause", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["ok"] is False
    assert filled.client.xlen(filled.streams.control) == 0


def test_a_wrong_token_logs_nobody_in(site: Site, filled: Filled) -> None:
    answer = site.browser.post("/login", data={"token": "wrong"})
    assert answer.status_code == 401
    assert "This token is not known." in answer.text
    assert site.get("/?token=wrong").status_code == 401
    assert not site.browser.cookies


@pytest.mark.parametrize("path", ["/", "/lines/{line}"])
def test_a_link_with_a_token_logs_in_and_leaves_the_address(site: Site, filled: Filled, path: str) -> None:
    path = path.format(line=filled.line)
    answer = site.get(f"{path}?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    cookie = answer.headers["set-cookie"]
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age="):
        assert attribute in cookie
    assert TOKEN not in cookie
    assert ">ann<" in site.get(path).text


@pytest.mark.parametrize(
    "there", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", "/a\r\nb", ""]
)
def test_logging_in_leads_nowhere_else(site: Site, there: str) -> None:
    answer = site.browser.post("/login", data={"token": TOKEN, "next": there})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "evil" not in site.get("/login", params={"next": there}).text


CROSS = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://evil.example"},
    {"origin": "null"},
]


@pytest.mark.parametrize("headers", CROSS)
def test_a_page_of_another_site_changes_nothing(site: Site, filled: Filled, headers: dict[str, str]) -> None:
    site.log_in()
    csrf = csrf_of(site)
    for sent in ({**headers, "x-csrf-token": csrf}, {**headers, **BEARER}):
        answer = site.tell(filled.line, "pause", headers=sent)
        assert answer.status_code == 403
        assert "another site" in answer.json()["text"]
    assert site.browser.post("/logout", headers=headers).status_code == 403
    assert site.browser.post("/login", data={"token": TOKEN}, headers=headers).status_code == 403
    assert filled.client.xlen(filled.streams.control) == 0


@pytest.mark.parametrize("csrf", ["", "0" * 64])
def test_a_session_without_its_pages_own_word_changes_nothing(site: Site, filled: Filled, csrf: str) -> None:
    site.log_in()
    answer = site.tell(
        filled.line, "pause", headers={"x-csrf-token": csrf.encode("latin1").decode("latin1")} if csrf.isascii() else {}
    )
    assert answer.status_code == 403
    assert "reload it" in answer.json()["text"]
    assert filled.client.xlen(filled.streams.control) == 0


def csrf_of(site: Site) -> str:
    found = re.search(r'<meta name="csrf" content="(\w+)">', site.get("/").text)
    assert found
    return found[1]


def test_nothing_is_changed_by_looking(site: Site, filled: Filled) -> None:
    for path in (f"/lines/{filled.line}/commands", "/logout"):
        assert site.get(path, headers=BEARER).status_code in (404, 405)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b"5",
        b'{"name": 5}',
        b'{"name": "pause", "args": "x"}',
        b'{"name": "pause", "args": [1]}',
        b"[" * 9000,
    ],
)
def test_a_body_that_is_no_command_is_told_what_one_is(site: Site, filled: Filled, body: bytes) -> None:
    answer = site.browser.post(f"/lines/{filled.line}/commands", content=body, headers=BEARER)
    assert answer.status_code == 400
    assert "expected" in answer.json()["text"]


def test_a_command_that_is_none_or_too_long_or_of_no_line_is_told(site: Site, filled: Filled) -> None:
    assert "expected one of relearn" in site.tell(filled.line, "explode").json()["text"]
    assert "rate takes RATE" in site.tell(filled.line, "rate").json()["text"]
    assert "expected a number" in site.tell(filled.line, "rate", "much").json()["text"]
    assert "longer than 16384 bytes" in site.tell(filled.line, "normal", "1-0", "x" * 20_000).json()["text"]
    assert site.tell("no-such-line", "pause").status_code == 404
    assert filled.client.xlen(filled.streams.control) == 0
    assert not filled.client.exists("mhpc:{no-such-line}:control")


def test_a_proxys_user_may_press_and_is_named(open_site: Callable[..., Site], filled: Filled) -> None:
    site = open_site({"tokens": {}, "user_header": "X-Forwarded-User"})
    site.browser.headers["x-forwarded-user"] = "eve@plant"
    page = site.get(f"/lines/{filled.line}").text
    assert "eve@plant" in page
    csrf = re.search(r'<meta name="csrf" content="(\w+)">', page)[1]  # type: ignore[index]  # it is there
    refused = site.tell(filled.line, "explode", headers={})
    assert refused.status_code == 403
    taken = site.tell(filled.line, "explode", headers={"x-csrf-token": csrf})
    assert (taken.status_code, taken.json()["by"]) == (400, "eve@plant")


def test_behind_tls_the_cookie_is_for_tls_alone(site: Site) -> None:
    def cookie(proto: str) -> str:
        return site.browser.post("/login", data={"token": TOKEN}, headers={"x-forwarded-proto": proto}).headers[
            "set-cookie"
        ]

    assert "Secure" in cookie("https")
    assert "Secure" not in cookie("http")


def test_no_cookie_goes_with_a_page_that_was_not_asked_to_log_in(site: Site) -> None:
    assert "set-cookie" not in httpx.get(site.url, timeout=60).headers


def test_an_answer_to_what_nobody_thought_of_leaves_no_room_for_mischief_either(
    site: Site, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.console.endpoints.GONE", {})
    closing = {"connection": "close"}  # the server ends it then, as it may; who asks next would meet a reset
    answer = site.get(f"/lines/{filled.line}/review/1-1", headers=closing)
    assert (answer.status_code, answer.text) == (500, "The console failed at this. Its log says how.\n")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("there", ["//[", "/[", "//]", "http://["])
def test_an_address_that_is_none_leads_nowhere(site: Site, there: str) -> None:
    assert site.get("/login", params={"next": there}).status_code == 200
    assert site.browser.post("/login", data={"token": TOKEN, "next": there}).status_code == 303


@pytest.mark.parametrize("cookie", ["9" * 5000 + ".x", "9" * 5000, ".", "x.x", "-1.x"])
def test_a_forged_session_is_nobodys(site: Site, filled: Filled, cookie: str) -> None:
    answer = site.get(f"/lines/{filled.line}", headers={"cookie": f"{site.access.cookie}={cookie}"})
    assert answer.status_code == 200
    assert 'id="read-only"' in answer.text


def test_half_a_surrogate_pair_is_no_argument(site: Site, filled: Filled) -> None:
    for name, argument in (("normal", "\\ud800"), ("\\udfff", "1-0")):
        body = f'{{"name": "{name}", "args": ["{argument}", "x"]}}'.encode()
        answer = site.browser.post(f"/lines/{filled.line}/commands", content=body, headers=BEARER)
        assert (answer.status_code, answer.json()["ok"]) == (400, False)
    assert filled.client.xlen(filled.streams.control) == 0


@pytest.mark.parametrize(
    ("sent", "known"), [("Zoë".encode(), "Zoë"), ("Zoë".encode("latin-1"), "Zoë"), ("Łukasz".encode(), "Łukasz")]
)
def test_a_proxys_user_is_named_as_he_spells_himself(open_site: Callable[..., Site], sent: bytes, known: str) -> None:
    site = open_site({"tokens": {}, "user_header": "X-Forwarded-User"})
    page = httpx.get(site.url, headers=[(b"x-forwarded-user", sent)], timeout=60)
    assert f">{known}<" in page.text
