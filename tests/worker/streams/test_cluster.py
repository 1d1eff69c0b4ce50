"""The streams of lines whose slots are on several nodes of a real Cluster."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.worker.faults.servers import Node, PrivateCluster, private_cluster
from tests.worker.helpers import LosesReplies, eventually
from tests.worker.streams.acting import HOLDER, add, answer, letters, pending, publish, results
from worker.errors import ConfigurationError, RedisUnreachableError
from worker.message import Image
from worker.producer import Producer, Retry
from worker.settings import RedisSettings
from worker.streams.client import CONNECTION_ERRORS, connect
from worker.streams.cluster import together
from worker.streams.control import COMMANDS, read_commands, read_commands_of_all, send
from worker.streams.line_streams import ANSWERING, LEARNING, REVIEW_CAPS, Commit, DeadLetter, LineStreams
from worker.streams.reads import Read, read_new, wait_and_read
from worker.streams.redial import RedialledError
from worker.streams.rights import missing_rights
from worker.streams.upkeep import delete_idle_consumers, unread_lost
from worker.views import known_lines, line_status

ME = "station-1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    with private_cluster(tmp_path_factory.mktemp("cluster") / "nodes") as cluster:
        yield cluster


@pytest.fixture
def client(cluster: PrivateCluster) -> Any:
    return connect(settings(cluster.url))


@pytest.fixture
def three(cluster: PrivateCluster, client: Any, line: str) -> list[LineStreams]:
    """Lines on three nodes."""
    lines = [LineStreams(client, name) for name in cluster.lines(line)]
    for streams in lines:
        streams.ensure_groups()
    return lines


def settings(url: str) -> RedisSettings:
    return RedisSettings.model_validate({"url": url})


def ids(found: dict[str, Read]) -> list[list[str] | None]:
    return [None if isinstance(read, Exception) else [entry.id for entry in read] for read in found.values()]


def test_a_node_that_is_taken_for_a_single_server_is_waited_for(cluster: PrivateCluster, line: str) -> None:
    node = cluster.nodes[0]
    names = [name for name in (f"{line}-{i}" for i in range(100)) if cluster.holder(f"mhpc:{{{name}}}:images") is node]
    client = redis.Redis(port=node.port, protocol=2)
    two = [LineStreams(client, name) for name in names[:2]]  # of two slots: one call for both is refused
    for streams in two:
        streams.ensure_groups()
    begun = time.monotonic()
    assert ids(wait_and_read(client, two, ME, 8, 300)) == [[], []]
    assert time.monotonic() - begun >= 0.3
    add(two[1], "1-0")
    assert ids(wait_and_read(client, two, ME, 8, 60_000)) == [[], ["1-0"]]
    assert time.monotonic() - begun < 60


def test_lines_on_several_nodes_are_read_at_once_and_each_error_is_its_own(
    client: Any, three: list[LineStreams]
) -> None:
    for streams in three:
        add(streams, "1-0", "2-0")
    client.xgroup_destroy(three[1].images, ANSWERING)
    assert ids(read_new(client, dict(zip(three, (1, 2, 8), strict=True)), ME)) == [["1-0"], None, ["1-0", "2-0"]]
    three[1].ensure_groups()
    assert ids(read_new(client, dict.fromkeys(three, 8), ME)) == [["2-0"], ["1-0", "2-0"], []]


def test_waiting_ends_with_the_first_entry_or_in_time(client: Any, three: list[LineStreams]) -> None:
    begun = time.monotonic()
    assert ids(wait_and_read(client, three, ME, 8, 300)) == [[], [], []]
    assert 0.3 <= time.monotonic() - begun < 15
    threading.Timer(0.1, add, (three[2], "7-0")).start()
    begun = time.monotonic()
    assert ids(wait_and_read(client, three, ME, 8, 60_000)) == [[], [], ["7-0"]]
    assert time.monotonic() - begun < 30


def test_all_that_a_worker_does_with_a_line_works_on_each_node(client: Any, three: list[LineStreams]) -> None:
    for streams in three:
        epoch, *_ = streams.acquire(HOLDER, 0)
        add(streams, "1-0", "2-0", "3-0")
        assert ids(read_new(client, {streams: 3}, "gone")) == [["1-0", "2-0", "3-0"]]
        assert streams.claim(ME, 0, 100) == (3, 0)
        assert [entry.id for entry in streams.own_pending(ME, 10)] == ["1-0", "2-0", "3-0"]
        assert streams.is_first("a", "1-0", 0, 10)
        streams.disown("a", "1-0", 0)
        assert [streams.mark("1-0/0"), streams.mark("1-0/0")] == [1, 2]
        streams.unmark("1-0/0")
        letter = DeadLetter("b", "truncated", "cut off", b"bytes")
        answers = [answer("1-0", b"a"), answer("2-0", dead=[letter]), answer("3-0", b"c")]
        assert publish(streams, *answers, answers[0]) == [True, True, True, False]
        assert (results(streams), len(letters(streams))) == ([b"a", b"c"], 1)
        assert [entry.id for entry in streams.read_learning(epoch, 10)] == ["1-0", "2-0", "3-0"]
        command = send(streams, "pause", {}, "test")
        assert [command.entry for command in read_commands(streams, "0")] == [command]
        streams.renew(epoch)
        streams.commit(epoch, {"phase": "scoring"}, Commit(b"reply"), REVIEW_CAPS)
        streams.acknowledge(epoch, ["1-0", "2-0", "3-0"])
        assert streams.trim(epoch, [ANSWERING, LEARNING]) == "3-0"
        assert (streams.last_id(), streams.backlog(ANSWERING)[1:]) == ("3-0", (0, None))
        assert unread_lost(streams, epoch) == 0
        time.sleep(0.01)
        assert set(delete_idle_consumers(streams, epoch, idle_ms=0)) == {"gone", ME}
        streams.release(epoch)
        assert missing_rights(client, streams.line) == []
        assert line_status(client, streams.line)["results"] == 2
    came = read_commands_of_all(client, dict.fromkeys(three, "0"))
    assert came == {streams.line: read_commands(streams, "0") for streams in three}
    assert set(known_lines(client)) >= {streams.line for streams in three}
    assert abs(client.time()[0] - time.time()) < 60
    assert "pause" in COMMANDS


def test_a_producer_sends_to_lines_on_any_node(cluster: PrivateCluster, three: list[LineStreams]) -> None:
    for streams in three:
        producer = Producer(connect(settings(cluster.url)), streams.line, retry=Retry(8))
        producer.send([Image("a", "png", b"x")])
        assert producer.ahead() == 1


def test_a_node_whose_connection_is_made_again_is_told_and_asked_nothing(cluster: PrivateCluster, line: str) -> None:
    redialled, names = threading.Event(), cluster.lines(line)
    client: Any = connect(settings(cluster.url), redialled=redialled)
    first, other, _ = [LineStreams(client, name) for name in names]
    for streams in (first, other):
        streams.state()
    assert not redialled.is_set()
    cluster.holder(first.images).ask("CLIENT KILL TYPE normal SKIPME yes")
    with pytest.raises(RedialledError):  # and no other node is asked for the slots
        add(first, "1-0")
    assert redialled.is_set()
    redialled.clear()
    assert [streams.state() for streams in (first, other)] == [{}, {}]
    assert first.last_id() == "0-0"
    cluster.holder(first.images).ask("CLIENT KILL TYPE normal SKIPME yes")
    with pytest.raises(RedialledError):
        publish(first, answer("1-0", b"r"))
    assert redialled.is_set()


def test_reading_asks_no_server_where_a_keys_slot_is(
    cluster: PrivateCluster, client: Any, three: list[LineStreams]
) -> None:
    for node in cluster.nodes:
        node.ask("CONFIG RESETSTAT")
    for streams in three:
        streams.own_pending(ME, 1)
    wait_and_read(client, three, ME, 8, 10)
    for node in cluster.nodes:
        assert b"getkeys" not in node.ask("INFO", "commandstats")


def slot_moves(cluster: PrivateCluster, line: LineStreams, to: Any, each: Any) -> None:
    """The line's slot moves to another node, key by key; `each` is called before, between and after."""
    each()
    cluster.begin_to_move(line.images, to)
    each()
    while cluster.move_keys(line.images, to, 1):
        each()
    cluster.end_to_move(line.images, to)
    each()


@pytest.mark.parametrize("new", [False, True], ids=["to a master", "to a node without slots"])
def test_a_slot_that_moves_loses_nothing_and_gives_nothing_twice(
    cluster: PrivateCluster, client: Any, three: list[LineStreams], new: bool
) -> None:
    line, producer, number = three[0], connect(settings(cluster.url)), 0
    refused = list[str]()
    to = cluster.join() if new else cluster.holder(three[1].images)
    cluster.wait()

    def send_read_answer() -> None:
        """What does not go through now goes through later, as in a worker's loop."""
        nonlocal number
        number += 1
        producer.xadd(line.images, {"batch": f"of {number}"}, id=f"{number}-0")
        try:
            entries = [*line.own_pending(ME, 8)]
            new_ones = read_new(client, dict.fromkeys(three, 8), ME)[line.line]
            assert not isinstance(new_ones, Exception)
            entries += new_ones
            publish(line, *[answer(entry.id, entry.id.encode()) for entry in entries])
        except redis.ConnectionError as error:  # TRYAGAIN: the keys of one script are on two nodes
            refused.append(str(error))

    slot_moves(cluster, line, to, send_read_answer)
    send_read_answer()
    assert cluster.holder(line.images) is to
    assert results(line) == [f"{i}-0".encode() for i in range(1, number + 1)]
    assert pending(line, ANSWERING) == []
    assert all("TTL exhausted" in error for error in refused)
    assert len(refused) < number


def test_a_write_whose_reply_was_lost_is_not_repeated(cluster: PrivateCluster, three: list[LineStreams]) -> None:
    key = three[0].images
    node = cluster.holder(key)
    proxy = LosesReplies(node.port, lambda command: b"XADD" in command)
    node.restart("--cluster-announce-port", str(proxy.port))
    try:
        eventually(lambda: all(announced(each, proxy.port) for each in cluster.nodes))
        cluster.wait()
        client: Any = connect(settings(cluster.url))
        with pytest.raises(CONNECTION_ERRORS):
            client.xadd(key, {"batch": b""})
        assert (proxy.lost, client.xlen(key)) == (1, 1)
        with pytest.raises(CONNECTION_ERRORS):
            together(client, [(key, lambda to: to.xadd(key, {"batch": b""}))])
        assert (proxy.lost, client.xlen(key)) == (2, 2)
    finally:
        node.restart()
        proxy.close()
        eventually(lambda: all(announced(each, node.port) for each in cluster.nodes))
        cluster.wait()


def announced(node: Node, port: int) -> bool:
    return any(port == master[1] for _, _, master, *_ in node.ask("CLUSTER SLOTS"))


def test_a_cluster_that_does_not_serve_is_as_one_that_is_gone(line: str, tmp_path: Any) -> None:
    with private_cluster(tmp_path / "nodes") as cluster:
        client: Any = connect(settings(cluster.url))
        lines = [LineStreams(client, name) for name in cluster.lines(line)]
        for streams in lines:
            streams.ensure_groups()
        dead = cluster.holder(lines[0].images)
        dead.kill()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # the others notice: CLUSTERDOWN
            for attempt in (
                lambda: read_new(client, dict.fromkeys(lines, 8), ME),
                lambda: wait_and_read(client, lines, ME, 8, 10),
                lambda: lines[0].own_pending(ME, 8),
                lambda: publish(lines[0], answer("1-0", b"r")),
            ):
                with pytest.raises(CONNECTION_ERRORS):
                    attempt()
        dead.start()

        def nothing_new() -> bool:
            try:
                return ids(read_new(client, dict.fromkeys(lines, 8), ME)) == [[], [], []]
            except CONNECTION_ERRORS:
                return False

        eventually(nothing_new)


def test_a_cluster_that_is_not_there_is_told_without_its_password(cluster: PrivateCluster) -> None:
    with pytest.raises(RedisUnreachableError, match="is not reached") as caught:
        connect(settings("redis+cluster://:hunter2@127.0.0.1:1,127.0.0.1:2"))
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_in_no_cluster_is_told(redis_url: str) -> None:
    with pytest.raises(RedisUnreachableError, match="Cluster mode is not enabled"):
        connect(settings(redis_url.replace("redis://", "redis+cluster://")))


@pytest.mark.parametrize(
    "rest", ["127.0.0.1:1,", ",", "127.0.0.1:1/1", "127.0.0.1:x", "127.0.0.1:1?sentinel_password=x"]
)
def test_an_address_that_names_no_nodes_or_a_database_is_a_matter_of_configuration(rest: str) -> None:
    with pytest.raises(ConfigurationError, match=r"redis\+cluster://HOST:PORT,HOST:PORT") as caught:
        connect(settings(f"redis+cluster://:hunter2@{rest}"))
    assert "hunter2" not in str(caught.value)
