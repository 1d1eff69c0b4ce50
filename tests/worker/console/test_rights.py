"""What the users of deploy/redis/users.acl can do by the page; on Redis 7.0 or newer."""

from collections.abc import Callable, Iterator

import pytest

from tests.deploy.test_acl import Guarded
from tests.servers import started
from tests.worker.console.site import Filled, Site, first, unanswered
from tests.worker.helpers import eventually


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    server = Guarded(folder)
    with started(folder, *server.options()):
        eventually(server.socket.exists)
        eventually(server.client("admin").ping)
        yield server


@pytest.fixture
def site_of(open_site: Callable[..., Site], guarded: Guarded) -> Callable[[str], Site]:
    def site_of(user: str) -> Site:
        return open_site(
            redis={"url": guarded.url, "username": user, "password_file": str(guarded.password_file(user))}
        )

    return site_of


def test_a_reader_looks_at_every_page_and_is_told_which_right_a_button_lacks(
    site_of: Callable[[str], Site], guarded: Guarded, line: str
) -> None:
    filled, site = Filled(guarded.client("admin"), line), site_of("reader")
    key = filled.flagged()
    result = filled.result()
    unanswered(filled)
    part = f"/lines/{line}/review/{key}"
    for path in ("/", f"/lines/{line}", part, f"{part}?order=largest", f"{part}/thumb.jpg", f"{part}/heat.png"):
        assert site.get(path).status_code == 200, path
    assert site.get(f"/lines/{line}/scores/{result}").status_code == 200
    assert 'data-state="scoring"' in site.get(f"/lines/{line}").text, "nothing of it is refused"
    assert site.get("/readyz").status_code == 200
    with site.events(f"/lines/{line}/events") as told:
        for name in ("points", "status", "calibration", "review", "journal"):
            first(told, name)
    with site.events("/events") as told:
        assert [row["line"] for row in first(told, "fleet")] == [line]
    answer = site.tell(line, "pause")
    assert answer.status_code == 403
    assert "`operator` of deploy/redis/users.acl" in answer.json()["text"]
    assert not guarded.client("admin").exists(filled.streams.control)


def test_an_operator_may_press(site_of: Callable[[str], Site], guarded: Guarded, line: str) -> None:
    filled, site = Filled(guarded.client("admin"), line), site_of("operator")
    filled.client.delete(filled.streams.lease)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.console.asking.ANSWER_SECONDS", 0.2)
        answer = site.tell(line, "pause")
    assert answer.status_code == 200
    assert "it has no keeper: start a worker" in answer.json()["text"]
    assert filled.client.xlen(filled.streams.control) == 1


def test_a_user_that_may_not_even_look_is_told_so(site_of: Callable[[str], Site], guarded: Guarded) -> None:
    page = site_of("producer").get("/")
    assert page.status_code == 503
    assert "lets this user do too little" in page.text
    assert "Redis is away" not in page.text
