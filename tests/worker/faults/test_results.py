"""Who follows a line's results while its server is killed."""

from threading import Thread

import pytest
import redis

from tests.worker.faults.processes import patient
from tests.worker.faults.servers import DurableRedis
from tests.worker.test_results import publish
from worker import results


def test_a_server_that_goes_is_waited_for_and_no_result_is_missed(
    durable_redis: DurableRedis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "AGAIN_SECONDS", 0.1)
    publish(patient(durable_redis.url), line, "a")
    told: list[str] = []

    def come_back() -> None:
        durable_redis.start()
        publish(patient(durable_redis.url), line, "b")

    coming = Thread(target=come_back)

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 1:  # not before: who looks only then would not see that it was gone
            coming.start()

    found = results.follow(redis.Redis.from_url(durable_redis.url, protocol=2), line, True, tell)
    assert next(found)["id"] == "a"
    durable_redis.kill()
    assert next(found)["id"] == "b"
    coming.join()  # who published has his answer, too, before the server ends
    assert [text[:20] for text in told] == ["Redis is not reached", "Redis is back"]
