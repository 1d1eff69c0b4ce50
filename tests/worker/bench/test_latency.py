from typing import Any

import pytest

from tests.worker.bench.helpers import add_result
from worker.bench.latency import Latency, latencies, redis_ms


def test_percentiles_lie_between_the_two_nearest() -> None:
    latency = Latency.of(list(range(1, 102)))
    assert latency == Latency(101, p50_ms=51, p95_ms=96, p99_ms=100, max_ms=101)
    assert Latency.of([10, 20]).p50_ms == pytest.approx(15)


def test_latency_is_from_the_entrys_id_to_its_results_and_only_of_what_was_added_in_the_window(
    client: Any, line: str
) -> None:
    for added, answered in ((1000, 1040), (1400, 1490), (999, 1500), (2000, 2001)):
        add_result(client, line, added, answered)
    assert latencies(client, line, since=1000, until=2000) == [40, 90]


def test_more_results_than_one_read_takes_are_all_found(client: Any, line: str) -> None:
    for number in range(1201):
        add_result(client, line, 1000 + number, 3000 + number // 3)
    assert len(latencies(client, line, since=0, until=10_000)) == 1201


def test_redis_clock_is_that_of_entry_ids(client: Any, line: str) -> None:
    before = redis_ms(client)
    entry = client.xadd(f"mhpc:{{{line}}}:images", {"a": "b"})
    assert before <= int(entry.partition(b"-")[0]) <= redis_ms(client)
