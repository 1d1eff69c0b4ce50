"""What a person sees, and what a page makes of what anybody may have put into Redis."""

import re
from collections.abc import Callable

import msgpack
import pytest

from tests.worker.console.site import TOKEN, Filled, Site, first, tags_of
from tests.worker.helpers import encoded, item, message, picture
from worker.message import Image
from worker.streams.control import COMMANDS

MARKUP = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{7*7}}"
HUGE = "x" * 1_000_000


def test_all_lines_are_shown_with_their_figures(site: Site, filled: Filled) -> None:
    for score in (1.0, 1.1, 3.0, 1.2):
        filled.result(score=score)
    page = site.get("/").text
    card = page[page.index(f'id="line-{filled.line}"') :]
    card = card[: card.index("</li>")]
    for text in (f"/lines/{filled.line}", "scoring", "25 %", "2.000", "0.25", "station-1"):
        assert text in card
    assert "no keeper" not in card


def test_a_line_that_stopped_says_why_and_one_without_a_keeper_says_so(site: Site, filled: Filled) -> None:
    filled.client.delete(filled.streams.lease)
    page = site.get(f"/lines/{filled.line}").text
    assert "no keeper" in page
    assert "No worker keeps this line" in page
    filled.state(problem="its stream went back: resync it")
    page = site.get(f"/lines/{filled.line}").text
    assert "its stream went back: resync it" in page
    assert 'data-state="stopped"' in page


def test_a_line_that_answers_on_with_a_problem_is_not_said_to_be_stopped(site: Site, filled: Filled) -> None:
    filled.state(problem="no snapshot, and nothing is acknowledged: no space left")
    page = site.get(f"/lines/{filled.line}").text
    assert "no space left" in page
    assert 'data-state="problem"' in page
    assert "no keeper" not in page
    assert "data-paused" not in page
    filled.state(phase="paused")
    assert "data-paused" in site.get(f"/lines/{filled.line}").text  # it can be resumed all the same
    filled.state(stopped="its stream went back", problem="its stream went back")  # its lease runs out by itself
    page = site.get("/").text
    assert f'data-line="{filled.line}" data-state="stopped"' in page


@pytest.mark.parametrize("stream", ["state", "scores", "review", "control", "dead", "lease"])
def test_a_key_of_another_type_is_the_lines_problem_and_hides_nothing_else(
    site: Site, filled: Filled, stream: str
) -> None:
    key = f"mhpc:{{{filled.line}}}:{stream}"
    filled.client.delete(key)
    filled.client.sadd(key, "a set")
    pages = site.get("/"), site.get(f"/lines/{filled.line}")
    assert [page.status_code for page in pages] == [200, 200]
    told = stream not in ("review", "control")  # which `status` does not look at
    assert ("holds something else than its name says" in pages[1].text) is told
    with site.events(f"/lines/{filled.line}/events") as events:
        assert first(events, "journal") == []


def test_a_configured_line_is_shown_before_it_has_a_stream(open_site: Callable[..., Site], line: str) -> None:
    site = open_site(lines=[{"name": line}])
    assert f'id="line-{line}" data-line="{line}" data-state="waiting"' in site.get("/").text
    page = site.get(f"/lines/{line}")
    assert page.status_code == 200
    assert "No worker has opened this line yet" in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/lines/no-such-line",
        "/lines/no-such-line/events",
        "/lines/UPPER",
        "/lines/%3Cb%3E",
        "/lines/a%2Fb",
        "/nothing",
        "/lines",
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(site: Site, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 404
    assert "<b>" not in answer.text


@pytest.mark.parametrize(
    "key", ["x", "1", "1-", "-1", "1-1-1", "+", "-", "(1-1", "9" * 30 + "-0", "%00", "\u0661-\u0661"]
)
@pytest.mark.parametrize("kind", ["scores", "review", "images"])
def test_an_entry_that_can_be_none_is_not_looked_for(site: Site, filled: Filled, kind: str, key: str) -> None:
    assert site.get(f"/lines/{filled.line}/{kind}/{key}").status_code == 404


def test_markup_is_text_wherever_it_comes_from(site: Site, filled: Filled) -> None:
    site.log_in()
    filled.state(model=MARKUP, problem=MARKUP)
    filled.client.set(filled.streams.lease, f"{MARKUP}#a")
    key = filled.flagged(MARKUP, meta={MARKUP: MARKUP}, model=MARKUP, image=Image(MARKUP, "png", encoded(picture())))
    filled.put("control", command=b"\x81\xa2by" + b"\xa3<b>")
    pages = [site.get("/"), site.get(f"/lines/{filled.line}"), site.get(f"/lines/{filled.line}/review/{key}")]
    for page in pages:
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert "&lt;script&gt;" in page.text
        assert not [tag for tag, attributes in tags_of(page) if "onerror" in attributes]
    assert "{{7*7}}" in pages[2].text


def test_an_id_of_a_million_characters_is_cut_and_its_title_says_so(site: Site, filled: Filled) -> None:
    site.log_in()
    key = filled.flagged(HUGE, image=Image(HUGE, "png", encoded(picture())), meta={"note": HUGE})
    page = site.get(f"/lines/{filled.line}/review/{key}").text
    assert "(1,000,000 characters, cut here)" in page
    assert len(page) < 40_000
    assert re.search(r'id="normal"[^>]*disabled', page), "no keeper would find it by such an id"
    assert len(site.get(f"/lines/{filled.line}").text) < 40_000


FULL = b"\x00" * 16
BROKEN: list[object] = [
    [1, 2], "map", 5, {"shape": [4, 4], "data": FULL}, {"shape": [4, 4], "max": 1.0, "data": FULL[1:]},
    {"shape": [4], "max": 1.0, "data": FULL}, {"shape": [-4, -4], "max": 1.0, "data": FULL},
    {"shape": [4, 4], "max": float("nan"), "data": FULL}, {"shape": [4, 4], "max": "x", "data": FULL},
    {"shape": [10**9, 10**9], "max": 1.0, "data": b""}, {"shape": [[4], 4], "max": 1.0, "data": FULL},
    {"shape": [4, 4], "max": 1.0, "data": "text"}, {"shape": [4.5, 4], "max": 1.0, "data": FULL + b"\x00\x00"},
]  # fmt: skip


@pytest.mark.parametrize("heat", BROKEN)
def test_a_broken_heat_map_leaves_the_rest_to_see(site: Site, filled: Filled, heat: object) -> None:
    result = {"v": 1, "id": "a", "entry": "7-0", "score": 5.0, "threshold": 2.0, "anomalous": True, "map": heat}
    key = filled.put("scores", result=msgpack.packb(result))
    assert site.get(f"/lines/{filled.line}/scores/{key}").status_code == 200
    answer = site.get(f"/lines/{filled.line}/scores/{key}/heat.png")
    assert (answer.status_code, answer.text[:22]) == (404, "the heat map is broken")


def test_a_picture_that_is_none_is_told(site: Site, filled: Filled) -> None:
    key = filled.flagged("a", image=Image("a", "png", b"no picture"))
    answer = site.get(f"/lines/{filled.line}/review/{key}/full.jpg")
    assert (answer.status_code, answer.text) == (404, "10 bytes that are not a png\n")
    bomb = filled.flagged("b", image=Image("b", "raw", b"", (100_000, 100_000, 3)))
    assert "at most 16384 a side" in site.get(f"/lines/{filled.line}/review/{bomb}/full.jpg").text


def test_a_result_that_names_an_entry_without_its_picture_is_told(site: Site, filled: Filled) -> None:
    entry = filled.put("images", batch=message(item("other")))
    key = filled.result("a", entry=entry)
    answer = site.get(f"/lines/{filled.line}/scores/{key}/full.jpg")
    assert (answer.status_code, answer.text) == (404, "the entry that its result names has no picture of this id\n")


def test_junk_in_the_streams_is_passed_over(site: Site, filled: Filled) -> None:
    for stream, field in (("scores", "result"), ("review", "image"), ("control", "command"), ("replies", "reply")):
        filled.junk(stream, field)
    key = filled.flagged("good among junk")
    filled.state(calibration="{not json", threshold="2.0")
    for path in ("/", f"/lines/{filled.line}", f"/lines/{filled.line}/review/{key}"):
        assert site.get(path).status_code == 200
    assert "9 entries of scores hold no result" in site.get(f"/lines/{filled.line}").text
    for entry, _ in filled.client.xrange(filled.streams.review):
        assert site.get(f"/lines/{filled.line}/review/{entry.decode()}").status_code in (200, 404)
        assert site.get(f"/lines/{filled.line}/review/{entry.decode()}/full.jpg").status_code in (200, 404)


def test_a_line_has_a_button_for_each_command_that_people_give(site: Site, filled: Filled) -> None:
    site.log_in()
    page = site.get(f"/lines/{filled.line}").text
    buttons = set(re.findall(r'data-command="(\w+)"', page))
    assert buttons == {"relearn", "calibrate", "pause", "resume", "rate", "rollback"}
    assert buttons < set(COMMANDS)
    assert "disabled" not in page


def test_who_logs_in_comes_back_to_the_page_that_he_left(site: Site, filled: Filled) -> None:
    key = filled.flagged()
    here = f"/lines/{filled.line}/review/{key}"
    page = site.get(here, params={"order": "largest"}).text
    links = set(re.findall(r'href="(/login[^"]*)"', page))
    assert links == {f"/login?next={here}%3Forder%3Dlargest"}
    form = site.get(links.pop()).text
    assert f'name="next" value="{here}?order=largest"' in form
    answer = site.browser.post("/login", data={"token": TOKEN, "next": f"{here}?order=largest"})
    assert answer.headers["location"] == f"{here}?order=largest"
