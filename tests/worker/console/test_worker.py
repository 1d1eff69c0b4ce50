"""Every button against a real worker: what its keeper says comes back, and holds."""

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.worker.console.site import BEARER, Site, first
from tests.worker.helpers import eventually, item, message
from tests.worker.playing import answered, in_phase, send
from tests.worker.station import stained
from tests.worker.turning import running
from worker.settings import Settings

STRANGE = {"id": "strange", "format": "png", "data": stained(7)}


Press = Callable[..., tuple[bool, str]]


@pytest.fixture
def site(
    open_site: Callable[..., Site],
    settings: Callable[..., Settings],
    client: redis.Redis,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """A page over a line that a worker scores."""
    for name in ("keeping.looking.LOOK_SECONDS", "learning.COMMANDS_SECONDS"):
        monkeypatch.setattr(f"worker.{name}", 0.05)
    site = open_site()
    with running(settings(line)):
        send(client, line, 1, 40)
        eventually(lambda: in_phase(client, line, "scoring"))
        yield site


@pytest.fixture
def press(site: Site, line: str) -> Press:
    """Ask the keeper as a button does; what it says."""

    def press(name: str, *args: str) -> tuple[bool, str]:
        answer = site.tell(line, name, *args)
        assert (answer.status_code, answer.json()["by"]) == (200, "ann")
        return answer.json()["ok"], answer.json()["text"]

    return press


def test_a_flagged_part_is_called_normal_and_passes_when_it_comes_again(
    site: Site, press: Press, client: redis.Redis, line: str
) -> None:
    client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(STRANGE)})
    strange = answered(client, line, 41)[-1]
    assert strange["anomalous"]
    with site.events(f"/lines/{line}/events") as told:
        key = first(told, "review")[0]["key"]
    page = site.get(f"/lines/{line}/review/{key}", headers=BEARER)
    assert "strange" in page.text
    for junk in ({"reply": b"\xc1"}, {"reply": b"\x05"}, {"reply": b"\x80"}, {"other": b"field"}):
        client.xadd(f"mhpc:{{{line}}}:replies", junk)  # type: ignore[arg-type]  # redis-py's fields are invariant
    ok, text = press("normal", strange["entry"], "strange")
    assert ok
    assert "anchors pinned" in text
    client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(STRANGE)})
    assert answered(client, line, 42)[-1]["anomalous"] is False
    again = site.get(f"/lines/{line}/review/{key}").text
    again = again[again.index('id="again"') :]
    assert 'data-verdict="normal"' in again
    with site.events(f"/lines/{line}/events") as told:
        (asked,) = first(told, "journal")
    assert (asked["by"], asked["name"], asked["ok"], asked["text"]) == ("ann", "normal", True, text)


def test_every_button_brings_the_keepers_answer(site: Site, press: Press, client: redis.Redis, line: str) -> None:
    ok, text = press("rate", "0.1")
    assert ok
    assert text.startswith("false-positive rate 0.1, threshold")
    assert press("rollback", "no-such-version")[0] is False
    assert press("anomalous", "1-0", "nobody")[0] is False
    assert press("pause")[1].startswith("paused in phase scoring")
    assert 'data-state="paused"' in site.get(f"/lines/{line}").text
    assert press("pause") == (False, "the line is paused already")
    assert press("resume") == (True, "goes on in phase scoring")
    assert press("rollback")[0]
    ok, text = press("rollback", "no-such-version")
    assert not ok
    assert "no-such-version" in text
    assert press("calibrate")[1].startswith("calibrates on the next 20 parts")
    assert press("relearn")[1].startswith("learns again")
    client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(item("1"))})
    assert press("relearn") == (False, "the line is learning already")
