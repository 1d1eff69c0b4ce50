"""A line's state that somebody else has written to."""

import pytest

from worker.errors import StateError
from worker.keeping.lease import LOST_EPOCHS
from worker.snapshots import STEM, stem_of
from worker.streams.line_streams import LineStreams
from worker.streams.state import read_state


def test_bytes_that_are_no_text_are_shown_as_far_as_they_are(streams: LineStreams) -> None:
    streams.client.hset(streams.state_key, mapping={b"pr\xfcfer": b"ok", b"note": b"gepr\xfcft", b"epoch": b"7"})
    assert read_state(streams) == {"pr\ufffdfer": "ok", "note": "gepr\ufffdft", "epoch": "7"}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epoch", "seven", "'seven', expected a whole number of at most 9 digits: HSET it to one above"),
        ("epoch", "-1", "'-1', expected a whole number"),
        ("epoch", "", "'', expected a whole number"),
        ("epoch", "1000000000", "'1000000000', expected a whole number of at most 9 digits"),
        ("epoch", "99999999999", "'99999999999', expected a whole number of at most 9 digits"),
        (
            "commands_through",
            "yesterday",
            "'yesterday', expected an entry id such as 1718000000000-0: HSET it to the id",
        ),
        ("commands_through", "5", "'5', expected an entry id"),
        ("commands_through", f"{2**64}-0", "expected an entry id"),
        ("applied_through", "\u0663-\u0663", "expected an entry id"),
        ("done_through", "5-0 ", "'5-0 ', expected an entry id"),
    ],
)
def test_an_id_or_a_number_that_cannot_be_read_is_told_by_key_and_field(
    streams: LineStreams, field: str, value: str, expected: str
) -> None:
    streams.client.hset(streams.state_key, field, value)
    with pytest.raises(StateError) as caught:
        read_state(streams)
    assert str(caught.value).startswith(f"{streams.state_key} has {field} ")
    assert expected in str(caught.value)


def test_all_that_cannot_be_read_is_told_at_once(streams: LineStreams) -> None:
    streams.client.hset(streams.state_key, mapping={"epoch": "seven", "done_through": "yesterday"})
    with pytest.raises(StateError, match=r"has epoch 'seven'.*; .* has done_through 'yesterday'"):
        read_state(streams)


def test_the_highest_epoch_leaves_room_for_those_that_are_left_out_after_a_failover(streams: LineStreams) -> None:
    streams.client.hset(streams.state_key, "epoch", "9" * 9)
    highest = int(read_state(streams)["epoch"])
    assert STEM.match(stem_of(highest + LOST_EPOCHS + 1, 1))


def test_an_epoch_may_be_written_as_it_stands_in_a_versions_name(streams: LineStreams) -> None:
    written, _, _ = stem_of(7, 1).partition("-")
    streams.client.hset(streams.state_key, "epoch", written)
    read_state(streams)
    assert streams.acquire("station-1#a", 0)[0] == 8
