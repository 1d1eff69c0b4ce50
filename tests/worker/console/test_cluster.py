"""The page over a Redis Cluster, its lines on several nodes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.console.site import Filled, Site, first
from tests.worker.faults.servers import private_cluster
from worker.settings import RedisSettings
from worker.streams.client import connect


def test_lines_on_all_nodes_are_shown_and_told(
    open_site: Callable[..., Site], tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.console.asking.ANSWER_SECONDS", 0.2)
    with private_cluster(tmp_path / "cluster") as cluster:
        client = connect(RedisSettings.model_validate({"url": cluster.url}))
        lines = [Filled(client, name) for name in cluster.lines(line)]
        site = open_site(redis={"url": cluster.url})
        keys = {filled.line: filled.flagged() for filled in lines}
        with site.events("/events") as told:
            assert [row["line"] for row in first(told, "fleet")] == sorted(keys)
        for name, key in keys.items():
            assert site.get(f"/lines/{name}/review/{key}/heat.png").status_code == 200
            assert site.tell(name, "pause").status_code == 200
        assert [filled.client.xlen(filled.streams.control) for filled in lines] == [1] * len(lines)
