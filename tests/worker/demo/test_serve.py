import re
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from rich.console import Console

from tests.conftest import PrivateRedis
from tests.worker.helpers import eventually
from worker.configuration import load_settings
from worker.demo import serve
from worker.demo.parts import Part, rendered_part, rendered_parts
from worker.demo.play import LINE, Player, Watch
from worker.demo.processes import ChildEndedError
from worker.demo.run import DemoOptions, worker_config
from worker.demo.serve import Page, mostly_good, opened
from worker.errors import ConfigurationError
from worker.message import decode_batch
from worker.producer import Producer
from worker.settings import ConsoleSettings

PARTS = [rendered_part("test", kind, 0, number) for number, kind in enumerate(["good"] * 20 + ["dent"] * 5)]


def config_for(tmp_path: Path, page: Page | None, url: str = "redis://127.0.0.1:7777/0") -> Path:
    file = tmp_path / "config.toml"
    parts = rendered_parts(learn=200, calibrate=40, good=1, per_kind=0)
    file.write_text(worker_config(DemoOptions(), parts, url, 8888, tmp_path, page), encoding="utf-8")
    return file


def test_the_page_gets_a_port_and_a_token_of_this_run(tmp_path: Path) -> None:
    page = Page.of_this_run()
    loaded = load_settings(config_for(tmp_path, page), environ={}).console
    assert (loaded.host, loaded.port) == ("127.0.0.1", page.port)
    assert {name: token.get_secret_value() for name, token in loaded.tokens.items()} == {page.user: page.token}
    assert Page.of_this_run().token != page.token
    assert load_settings(config_for(tmp_path, None), environ={}).console == ConsoleSettings()


def test_where_the_usual_port_is_taken_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(serve, "ConsoleSettings", lambda: ConsoleSettings(port=port))
        assert Page.of_this_run().port != port
    assert Page.of_this_run().port == port


def test_most_parts_that_go_on_coming_are_good_and_they_are_always_the_same() -> None:
    chosen = mostly_good(PARTS)
    assert Counter(part.kind for part in chosen) == {"good": 20, "dent": 3}
    assert [place for place, part in enumerate(chosen) if part.kind == "dent"] == [9, 19, 22]
    assert mostly_good(PARTS) == chosen


@pytest.mark.parametrize("kind", [None, "dent"])
def test_where_no_part_is_known_to_be_good_all_come(kind: str | None) -> None:
    parts = [Part(str(number), "test", kind, bytes, lambda: None) for number in range(4)]
    assert mostly_good(parts) == parts


def test_parts_come_again_with_their_ids_and_the_printed_link_opens_the_page(
    tmp_path: Path, private_redis: PrivateRedis
) -> None:
    client: Any = redis.Redis.from_url(private_redis.url, protocol=2)
    page, console = Page.of_this_run(), Console(record=True, width=200)
    images = f"mhpc:{{{LINE}}}:images"

    def ids() -> list[str]:
        entries = client.xrange(images)
        batches = (decode_batch(fields[b"batch"], load_settings(None).limits) for _, fields in entries)
        return [image.id for batch in batches for image in batch]

    with opened(page, config_for(tmp_path, page, private_redis.url), console) as child:
        assert child is not None
        player = Player(Producer(client, LINE, rate=200), Watch(client), child)

        def end_the_page() -> None:
            eventually(lambda: len(ids()) > 30)
            child.process.terminate()

        url = re.findall(r"Live page: (\S+)", console.export_text(clear=False))[0]
        with httpx.Client(follow_redirects=True, timeout=60) as browser:
            shown = browser.get(url)
            assert (shown.status_code, str(shown.url)) == (200, f"http://127.0.0.1:{page.port}/lines/{LINE}")
            assert f'id="who" class="name">{page.user}<' in shown.text
        ender = threading.Thread(target=end_the_page)
        ender.start()
        with pytest.raises(ChildEndedError, match="the console ended by itself"):
            serve.serve(player, PARTS[15:], page, child, console)
        ender.join()
    assert max(Counter(ids()).values()) >= 2
    assert url in console.export_text()


def test_without_serve_no_page_is_opened(tmp_path: Path) -> None:
    console = Console(record=True)
    with opened(None, tmp_path / "config.toml", console) as child:
        assert child is None
    assert console.export_text() == ""


def test_a_page_that_cannot_start_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = Page(taken.getsockname()[1], "ann", "a-token-that-is-long-enough")
        with (
            pytest.raises(ChildEndedError, match=r"choose another console\.port") as error,
            opened(page, config_for(tmp_path, page), Console()),
        ):
            pass
    assert error.value.exit_code == ConfigurationError.exit_code
