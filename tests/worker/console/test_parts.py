"""A part's page: what is still known of it, wherever that lies."""

import asyncio
import html
import io
import re
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.worker.console.site import MODEL, Filled, Site, first
from tests.worker.helpers import encoded, picture
from worker.console.pages import part_values
from worker.message import Image


def test_a_part_shows_its_picture_scores_version_and_times(site: Site, filled: Filled) -> None:
    key = filled.flagged("part-7", 5.0, meta={"camera": "left", "raw": b"\x00\x01"})
    page = site.get(f"/lines/{filled.line}/review/{key}").text
    times = ("2023-11-14 22:13:20 UTC", "1970-01-01 00:00:00 UTC", "12 ms")
    for text in ("part-7", "anomalous", "5.000", "2.50 times the threshold", MODEL, *times, "camera", "2 bytes"):
        assert text in page
    for name, size in (("full.jpg", (48, 40)), ("thumb.jpg", (48, 40)), ("heat.png", (384, 384))):
        answer = site.get(f"/lines/{filled.line}/review/{key}/{name}")
        assert Pillow.open(io.BytesIO(answer.content)).size == size
        assert "max-age" in answer.headers["cache-control"]


def test_raw_pictures_are_shown_and_large_ones_made_small(site: Site, filled: Filled) -> None:
    grey = filled.flagged("grey", image=Image("grey", "raw", bytes(range(200)) * 50, (100, 100, 1)))
    large = filled.flagged("large", image=Image("large", "jpeg", encoded(picture(1, 1500, 3000), "JPEG")))
    sizes = {}
    for key in (grey, large):
        for name in ("thumb", "full"):
            answer = site.get(f"/lines/{filled.line}/review/{key}/{name}.jpg")
            sizes[key, name] = Pillow.open(io.BytesIO(answer.content)).size
    assert list(sizes.values()) == [(100, 100), (100, 100), (320, 160), (1280, 640)]


def test_a_heat_map_is_clear_where_the_part_is_as_it_should_be(site: Site, filled: Filled) -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 6.0  # three thresholds
    key = filled.result("a", 5.0, map=heat)
    answer = site.get(f"/lines/{filled.line}/scores/{key}/heat.png")
    alpha = np.asarray(Pillow.open(io.BytesIO(answer.content)))[:, :, 3]
    assert alpha[:40, :40].min() > 230
    assert alpha[200:, 200:].max() == 0


def test_a_part_that_passed_has_a_page_without_a_verdict_to_press(site: Site, filled: Filled) -> None:
    site.log_in()
    key = filled.result("good", 1.0)
    page = site.get(f"/lines/{filled.line}/scores/{key}").text
    assert 'data-verdict="normal"' in page
    assert 'id="not-in-review"' in page
    assert re.search(r'id="normal"[^>]*disabled', page)
    gone = site.get(f"/lines/{filled.line}/scores/{key}/full.jpg")
    assert (gone.status_code, gone.text) == (
        404,
        "not kept: only parts that were flagged or set aside keep their picture\n",
    )


def test_a_result_leads_to_its_part_in_review_and_back(site: Site, filled: Filled) -> None:
    site.log_in()
    result, _ = filled.both("bad", 5.0)
    page = site.get(f"/lines/{filled.line}/scores/{result}").text
    assert "not-in-review" not in page
    assert not re.search(r'id="normal"[^>]*disabled', page)
    assert html.escape('["7-0", "bad"]', quote=False).replace('"', "&#34;") in page
    assert site.get(f"/lines/{filled.line}/scores/{result}/full.jpg").status_code == 200


def test_the_arrows_lead_to_the_parts_beside_it_by_time_and_by_score(site: Site, filled: Filled) -> None:
    low, high, middle = (filled.flagged(name, score) for name, score in (("low", 3.0), ("high", 9.0), ("middle", 5.0)))

    def beside(key: str, query: str = "") -> list[str]:
        page = site.get(f"/lines/{filled.line}/review/{key}{query}").text
        return [match[1] for match in re.finditer(r'rel="(?:prev|next)" href="[^"]*/review/([\d-]+)', page)]

    assert beside(high) == [middle, low]
    assert beside(middle) == [high]
    assert beside(middle, "?order=largest") == [high, low]
    assert beside(high, "?order=largest") == [middle]


def test_parts_alike_come_newest_first_and_those_without_a_score_last(site: Site, filled: Filled) -> None:
    odd = [filled.reviewed(Image("odd", "png", b""), None, "quarantined") for _ in range(2)]
    alike = [filled.flagged("a", score) for score in (4.00001, 4.0, 4.0)]  # to all the digits that the gallery is told
    order, place = [*alike[::-1], *odd[::-1]], alike[-1]
    for expected in order[1:]:
        page = site.get(f"/lines/{filled.line}/review/{place}?order=largest").text
        found = re.search(r'rel="next" href="[^"]*/review/([\d-]+)', page)
        assert found
        assert found[1] == expected
        place = expected


def test_the_same_part_seen_again_is_listed(site: Site, filled: Filled) -> None:
    key = filled.flagged("part-7", 5.0)
    later = filled.result("part-7", 1.0)
    page = site.get(f"/lines/{filled.line}/review/{key}").text
    again = page[page.index('id="again"') :]
    assert f"/scores/{later}" in again
    assert again.count("/scores/") == 1


def test_another_part_whose_long_id_begins_alike_is_not_the_same(site: Site, filled: Filled) -> None:
    path = "/mnt/cameras/left/2026-11-26/shift-2/batch-000000000000000000000017/"
    key = filled.flagged(f"{path}part-1.png")
    other = filled.result(f"{path}part-2.png", 1.0)
    page = site.get(f"/lines/{filled.line}/review/{key}").text
    assert f"/scores/{other}" not in page
    assert f'data-id="{path}part-1.png"' in page, "by which the page knows it when it comes again"
    assert "part-1.png</h1>" in page, "a long id is cut in its middle"
    again = filled.result(f"{path}part-1.png", 1.0)
    assert f"/scores/{again}" in site.get(f"/lines/{filled.line}/review/{key}").text
    with site.events(f"/lines/{filled.line}/events") as told:
        assert [point[2] for point in first(told, "points")[1:]] == [f"{path}part-2.png", f"{path}part-1.png"]


def test_a_result_leads_to_its_part_that_was_set_aside_later(site: Site, filled: Filled) -> None:
    site.log_in()
    result = filled.result("odd", None, "7-0")
    filled.reviewed(Image("odder", "png", encoded(picture())), None, "quarantined")
    assert "not-in-review" in site.get(f"/lines/{filled.line}/scores/{result}").text
    time.sleep(0.15)  # past the time within which a flagged part is looked for
    filled.reviewed(Image("odd", "png", encoded(picture())), None, "quarantined")
    page = site.get(f"/lines/{filled.line}/scores/{result}").text
    assert "not-in-review" not in page
    assert 'data-verdict="set aside"' in page
    assert re.search(r'<button id="normal" data-command="release"  ', page)
    assert site.get(f"/lines/{filled.line}/scores/{result}/full.jpg").status_code == 200


def test_nobody_waits_while_a_parts_page_is_made(site: Site, filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*given: Any) -> dict[str, Any]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return part_values(*given)

    monkeypatch.setattr("worker.console.endpoints.part_values", made)
    key = filled.result(meta={"note": "x" * 1_000_000})
    assert site.get(f"/lines/{filled.line}/scores/{key}").status_code == 200


@pytest.mark.parametrize("kind", ["scores", "review"])
def test_a_part_that_was_trimmed_is_too_old(site: Site, filled: Filled, kind: str) -> None:
    answer = site.get(f"/lines/{filled.line}/{kind}/1-1")
    assert answer.status_code == 404
    assert "Too old" in answer.text
    for name in ("full.jpg", "heat.png"):
        assert "too old" in site.get(f"/lines/{filled.line}/{kind}/1-1/{name}").text


def test_a_part_whose_bytes_review_did_not_keep_says_so(site: Site, filled: Filled) -> None:
    key = filled.put("review", entry="7-0", id="a", why="quarantined", score="", threshold="", model="", image=b"")
    page = site.get(f"/lines/{filled.line}/review/{key}")
    assert page.status_code == 200
    assert "set aside" in page.text
    assert "not-in-review" in page.text
    assert "too old" in site.get(f"/lines/{filled.line}/review/{key}/full.jpg").text


def test_a_part_that_was_set_aside_is_learned_after_all(site: Site, filled: Filled) -> None:
    site.log_in()
    key = filled.reviewed(Image("a", "png", encoded(picture())), None, "quarantined")
    page = site.get(f"/lines/{filled.line}/review/{key}").text
    assert 'data-verdict="set aside"' in page
    assert re.search(r'<button id="normal" data-command="release"  ', page)
    assert re.search(r'<button id="anomalous" data-command="anomalous"  ', page)
    assert site.get(f"/lines/{filled.line}/review/{key}/thumb.jpg").status_code == 200
    assert "set aside while the line learned" in page
    assert "It was set aside, not learned: it is taken out of review" in page


def test_a_part_that_was_set_aside_when_learning_ended_is_said_to_have_been_learned(site: Site, filled: Filled) -> None:
    site.log_in()
    key = filled.reviewed(Image("a", "png", encoded(picture())), None, "quarantined", learned="1")
    page = site.get(f"/lines/{filled.line}/review/{key}").text
    assert 'data-verdict="set aside"' in page
    assert "It was set aside when learning ended: there was no heat map yet." in page
    assert "It was learned, and set aside when learning ended: what it alone has brought" in page
