"""What the page takes of memory: it has 512 MiB in deploy/compose.yaml and under systemd."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgpack
import numpy as np
import pytest
from PIL import Image as Pillow

from tests.worker.cli.test_console import console
from tests.worker.console.site import Filled, Site
from tests.worker.helpers import encoded
from worker.console.pictures import MAP_SIDE
from worker.message import Image

ALLOWED = 512 * 1024  # KiB
WIDTH, HEIGHT = 8000, 5000  # 40 megapixels, the most that `limits` accept


def largest_memory(pid: int) -> int:
    """The most that a process ever had, in KiB."""
    (line,) = (text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1])


def of_40_megapixels(mode: str, form: str) -> bytes:
    buffer = io.BytesIO()
    Pillow.new(mode, (WIDTH, HEIGHT)).save(buffer, form)
    return buffer.getvalue()


def test_the_largest_pictures_that_are_accepted_fit_the_memory_that_the_page_has(
    tmp_path: Path, redis_url: str, filled: Filled
) -> None:
    kinds = [("RGB", "JPEG"), ("RGBA", "PNG"), ("I;16", "PNG")]
    keys = [filled.flagged(image=Image("a", form.lower(), of_40_megapixels(mode, form))) for mode, form in kinds]  # type: ignore[arg-type]  # a literal, in lower case
    sizes = [(key, size) for key in keys for size in ("thumb", "full")]
    with console(tmp_path, "--redis", redis_url) as (process, output):
        url = output.read_text().partition("?")[0].split()[1]

        def get(asked: tuple[str, str]) -> tuple[int, int]:
            answer = httpx.get(f"{url}lines/{filled.line}/review/{asked[0]}/{asked[1]}.jpg", timeout=60)
            return Pillow.open(io.BytesIO(answer.content)).size

        with ThreadPoolExecutor(len(sizes)) as pool:
            assert list(pool.map(get, sizes)) == [(320, 200), (1280, 800)] * len(keys)
        assert largest_memory(process.pid) < ALLOWED


def test_the_largest_entries_that_review_keeps_fit_it_too(tmp_path: Path, redis_url: str, filled: Filled) -> None:
    whole = Image("a", "raw", bytes(4500 * 4500 * 3), (4500, 4500, 3))  # 61 MB
    keys = [filled.flagged(image=whole) for _ in range(4)]
    with console(tmp_path, "--redis", redis_url) as (process, output):
        url = output.read_text().partition("?")[0].split()[1]
        part = f"{url}lines/{filled.line}/review/{keys[0]}"
        for path in (part, f"{part}/full.jpg"):
            assert httpx.get(path, timeout=60).status_code == 200
        with httpx.stream("GET", f"{url}lines/{filled.line}/events", timeout=60) as answer:
            assert "event: review" in "".join(told_until("journal", answer.iter_lines()))
        assert largest_memory(process.pid) < ALLOWED
    filled.client.delete(filled.streams.review)


def told_until(name: str, lines: Iterator[str]) -> Iterator[str]:
    for text in lines:
        yield text
        if text == f"event: {name}":
            return


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1", "I;16"])
def test_a_picture_of_any_mode_is_shown_as_the_worker_sees_it(site: Site, filled: Filled, mode: str) -> None:
    grey = np.linspace(0, 255, 100 * 100).reshape(100, 100).astype(np.uint8)
    if mode == "I;16":
        data, seen = encoded(grey.astype(np.uint16) * 256), grey
    else:
        whole = Pillow.fromarray(grey).convert(mode)
        if mode in ("LA", "RGBA"):
            whole.putalpha(3)
        buffer = io.BytesIO()
        whole.save(buffer, "PNG")
        data, seen = buffer.getvalue(), np.asarray(whole.convert("RGB"))[:, :, 0]
    key = filled.flagged(image=Image("a", "png", data))
    shown = site.get(f"/lines/{filled.line}/review/{key}/full.jpg").content
    pixels = np.asarray(Pillow.open(io.BytesIO(shown)).convert("L")).astype(int)
    assert np.abs(pixels - seen).mean() < 5


def test_a_heat_map_of_a_size_that_no_model_gives_is_refused_before_it_is_unpacked(site: Site, filled: Filled) -> None:
    side = MAP_SIDE + 1
    forged = {"shape": [side, side], "max": 1.0, "data": b"\x00" * side**2}
    key = filled.put("scores", result=msgpack.packb({"id": "a", "score": 5.0, "threshold": 2.0, "map": forged}))
    answer = site.get(f"/lines/{filled.line}/scores/{key}/heat.png")
    assert (answer.status_code, answer.text[:22]) == (404, "the heat map is broken")


def test_the_largest_heat_map_is_made_small(site: Site, filled: Filled) -> None:
    key = filled.result("a", 5.0, map=np.full((MAP_SIDE, MAP_SIDE // 2), 4.0, np.float32))
    drawn = np.asarray(Pillow.open(io.BytesIO(site.get(f"/lines/{filled.line}/scores/{key}/heat.png").content)))
    assert drawn.shape == (384, 192, 4)
    assert drawn[:, :, 3].min() == 255
