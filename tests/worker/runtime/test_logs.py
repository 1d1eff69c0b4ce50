import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.worker.calling import Call
from tests.worker.terminal import Terminal
from worker.runtime.logs import Repeats, ToStructlog, configure_logs, log_crash

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def events(capsys: pytest.CaptureFixture[str]) -> Iterator[Events]:
    """What was logged as JSON since the last time that this was asked."""
    yield lambda: [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    structlog.reset_defaults()
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, ToStructlog)]


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Logs that are configured from now on are held back by this clock."""
    clock = Clock()
    monkeypatch.setattr("worker.runtime.logs.Repeats", lambda: Repeats(10.0, clock))
    return clock


def log() -> Any:
    return structlog.get_logger()


# -- one line, one event -----------------------------------------------------------------------------------------------


def test_an_event_is_a_json_document_on_one_line(events: Events) -> None:
    configure_logs("json")
    log().info("started", worker="station-1", lines=["press-3"], path=Path("a\nb"))
    (event,) = events()
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "started", "level": "info", "worker": "station-1", "lines": ["press-3"], "path": "PosixPath('a\\nb')",
    }  # fmt: skip


def test_an_exception_is_one_structured_field_without_what_variables_held(events: Events) -> None:
    configure_logs("json")
    swordfish = "a local's value"
    try:
        try:
            raise KeyError(1)
        except KeyError as error:
            raise ValueError("it failed") from error
    except ValueError:
        log().exception("an image failed", line="press-3")
    (event,) = events()
    failed, cause = event["exception"]
    assert (failed["exc_type"], failed["exc_value"]) == ("ValueError", "it failed")
    assert (cause["exc_type"], cause["is_cause"]) == ("KeyError", True)
    (frame,) = failed["frames"]
    assert (frame["filename"], frame["name"]) == (__file__, sys._getframe().f_code.co_name)
    assert swordfish not in json.dumps(event)


def test_for_people_it_is_text_with_a_plain_traceback(capsys: pytest.CaptureFixture[str], events: Events) -> None:
    configure_logs("console")
    swordfish = "a local's value"
    try:
        raise ValueError("it failed")
    except ValueError:
        log().exception("an image failed", line="press-3")
    told = capsys.readouterr().err
    for part in ("[error", "an image failed", "line=press-3", "Traceback (most recent call last)", "it failed"):
        assert part in told
    assert swordfish not in told
    assert "\x1b" not in told  # this is no terminal


def test_on_a_terminal_it_is_coloured_text_and_elsewhere_json(tmp_path: Path, redis_url: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f"[redis]\nurl = '{redis_url}'\n[worker]\ndevice = 'cpu'\n[model]\ninput_shape = [64, 64]\n"
        f"[snapshots]\ndirectory = '{tmp_path}'\n[http]\nport = 0\n[[lines]]\nname = 'press-3'\n"
    )
    with Terminal("run", "--config", str(config)) as terminal:
        terminal.shows("started")
        terminal.process.terminate()
        assert terminal.ended() == 0
        assert "\x1b[32m\x1b[1minfo" in terminal.written()
        assert '{"' not in terminal.written()


# -- what other libraries say ------------------------------------------------------------------------------------------


def test_what_uvicorn_and_others_log_is_an_event_like_any_other(events: Events) -> None:
    configure_logs("json")
    logging.getLogger("uvicorn.error").info("Uvicorn running")
    try:
        raise ValueError("a page failed")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in %s application\n", "ASGI")
    (event,) = events()
    assert (event["event"], event["level"], event["logger"]) == (
        "Exception in ASGI application",
        "error",
        "uvicorn.error",
    )
    assert event["exception"][0]["exc_value"] == "a page failed"


def test_a_warning_is_an_event_like_any_other(events: Events) -> None:
    configure_logs("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("be\ncareful", stacklevel=1)
    (event,) = events()
    assert (event["event"], event["level"], event["category"]) == ("be careful", "warning", "UserWarning")
    assert event["where"].startswith(f"{__file__}:")


def test_a_defect_that_ends_the_process_is_one_event_and_exit_code_1(
    call: Call, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError("nobody expected this")

    monkeypatch.setattr("worker.process.run_worker", fails)
    ended = call("run", "--config", config())
    (event,) = (json.loads(text) for text in ended.err.splitlines())
    assert (ended.code, event["level"]) == (1, "critical")
    assert event["exception"][0]["exc_value"] == "nobody expected this"


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_in_no_log(form: Any, capsys: pytest.CaptureFixture[str], events: Events) -> None:
    configure_logs(form)
    url = "redis+sentinel://anna:hunter2@h:1,i:2/m/0?sentinel_password=hunter2&db=1"
    log().warning("Redis is not reached", error=f"Error 111 connecting to {url}. Refused", nested=[{"url": url}])
    log().info("as it came", password="hunter2", token="hunter2", header="Authorization: Bearer hunter2")  # noqa: S106 - none is one
    try:
        raise ValueError(f"cannot parse {url}")
    except ValueError:
        log_crash()
    told = capsys.readouterr().err
    assert "hunter2" not in told
    assert "anna" not in told
    assert told.count("://***@h:1,i:2/m/0?sentinel_password=***&db=1") >= 3
    if form == "json":
        assert [json.loads(text)["level"] for text in told.splitlines()] == ["warning", "info", "critical"]


@pytest.mark.parametrize("password", ["hun@ter", "hun@@ter", "hun'ter", 'hun"ter', "hun\\ter", "hun?ter"])
@pytest.mark.parametrize("form", ["json", "console", "terminal"])
def test_no_part_of_a_password_is_in_a_log_however_it_is_quoted(
    form: Any, password: str, capsys: pytest.CaptureFixture[str], events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: form == "terminal")
    configure_logs("console" if form == "terminal" else form)
    url = f"redis://anna:{password}@h:1/0"
    log().info("an address", url=url, error=f"cannot reach {url}?sentinel_password={password}&db=1", nested=[(url,)])
    log().info("a field", sentinel_password=password, nested={"token": password, "kept": 1}, other=ValueError(url))
    fields = {"sentinel_password": password, "kept": 1}
    told = [repr(fields), json.dumps(fields), repr({b"password": password.encode()}), f"C({password=})"]
    log().info("a text", texts=told, whole="; ".join(told))
    err = capsys.readouterr().err
    assert [part for part in ("hun", "ter", "anna") if part in err] == []
    if form == "json":
        assert err.count("kept") == 5
        first, second, third = (json.loads(text) for text in err.splitlines())
        assert (first["url"], first["nested"]) == ("redis://***@h:1/0", [["redis://***@h:1/0"]])
        assert first["error"] == "cannot reach redis://***@h:1/0?sentinel_password=***&db=1"
        assert (second["sentinel_password"], second["nested"]) == ("***", {"token": "***", "kept": 1})
        assert third["texts"][1] == '{"sentinel_password": "***", "kept": 1}'


# -- repeats -----------------------------------------------------------------------------------------------------------


def test_trouble_that_repeats_itself_is_told_once_with_how_often_it_came(clock: Clock, events: Events) -> None:
    configure_logs("json")
    for number in range(5):
        log().error("an image failed", line="press-3", id=str(number))
    log().error("an image failed", line="press-4", id="x")
    log().error("an entry failed", line="press-3")
    told = [(event["event"], event["line"], event.get("repeated")) for event in events()]
    assert told == [
        ("an image failed", "press-3", None),
        ("an image failed", "press-4", None),
        ("an entry failed", "press-3", None),
    ]
    clock.now = 10.0
    log().error("an image failed", line="press-3", id="6")
    (event,) = events()
    assert (event["id"], event["repeated"]) == ("6", 4)
    log().error("an image failed", line="press-3", id="7")
    assert events() == []


def test_what_was_held_back_is_told_once_its_time_is_over_whatever_comes_next(clock: Clock, events: Events) -> None:
    configure_logs("json")
    for number in range(3):
        log().warning("out of memory", images=number)
    assert len(events()) == 1
    clock.now = 10.0
    log().info("snapshot", line="press-3")
    late, event = events()
    assert (late["event"], late["level"], late["images"], late["repeated"]) == ("out of memory", "warning", 2, 2)
    assert event["event"] == "snapshot"
    log().info("snapshot", line="press-3")
    assert [event["event"] for event in events()] == ["snapshot"]


def test_at_the_end_the_rest_is_told(events: Events) -> None:
    tell_rest = configure_logs("json")
    for _ in range(3):
        try:
            raise ValueError("it failed")
        except ValueError:
            log().exception("an image failed", line="press-3")
    tell_rest()
    first, last = events()
    assert first["exception"][0]["exc_type"] == "ValueError"
    assert (last["repeated"], last["error"], "exception" in last) == (2, "ValueError: it failed", False)
    tell_rest()
    assert events() == []


def test_what_is_no_trouble_is_told_each_time(clock: Clock, events: Events) -> None:
    configure_logs("json")
    for name in ("pause", "resume"):
        log().info("command", line="press-3", name=name)
    assert [event["name"] for event in events()] == ["pause", "resume"]


def test_threads_that_log_at_once_lose_no_count(clock: Clock, events: Events) -> None:
    configure_logs("json")

    def fail() -> None:
        for _ in range(200):
            log().error("an image failed", line="press-3")

    threads = [threading.Thread(target=fail) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now = 10.0
    log().error("an image failed", line="press-3")
    first, last = events()
    assert ("repeated" in first, last["repeated"]) == (False, 799)


# -- one event per fact ------------------------------------------------------------------------------------------------


def test_no_event_says_what_its_exception_says_already() -> None:
    """`log.exception` with the error's text beside it tells one fact twice."""
    source = Path(__file__).parents[3] / "worker"
    calls = subprocess.run(
        ["/usr/bin/grep", "-rn", "log.exception(", str(source), "--include=*.py"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(calls) >= 4
    assert [text for text in calls if "error=" in text] == []
