"""What another program has put into one line's keys, which is no matter of the other lines."""

from typing import Any

import pytest
import redis

from tests.worker.helpers import eventually
from tests.worker.playing import answered, send
from tests.worker.turning import Run, get
from worker.streams.line_streams import LineStreams


def test_bytes_that_are_no_text_in_a_lines_state_and_its_groups_keep_no_line_from_its_work(
    run: Run, settings: Any, client: redis.Redis, line: str
) -> None:
    odd, even = f"{line}-odd", f"{line}-even"
    streams = LineStreams(client, odd)
    client.hset(streams.state_key, mapping={"note": b"gepr\xfcft"})
    client.xgroup_create(streams.images, b"pr\xfcfer", "0", mkstream=True)
    run(settings(odd, even))
    for name in (odd, even):
        send(client, name, 1, 4)
        answered(client, name, 4)


@pytest.mark.parametrize("field", ["epoch", "commands_through", "done_through"])
def test_a_state_that_cannot_be_read_stops_its_line_alone_until_it_is_put_right(
    run: Run, settings: Any, client: redis.Redis, line: str, field: str
) -> None:
    bad, good = f"{line}-bad", f"{line}-good"
    client.hset(f"mhpc:{{{bad}}}:state", field, "yesterday")
    worker = run(settings(bad, good))
    for name in (bad, good):
        send(client, name, 1, 4)
    answered(client, good, 4)
    told = f"mhpc:{{{bad}}}:state has {field} "
    eventually(lambda: told in get(worker, "/readyz")[1])
    client.hdel(f"mhpc:{{{bad}}}:state", field)
    answered(client, bad, 4)
