"""A line's state that somebody else has written to."""

import pytest

from worker.errors import StateError
from worker.streams.line_streams import LineStreams
from worker.streams.state import read_state


def test_bytes_that_are_no_text_are_shown_as_far_as_they_are(streams: LineStreams) -> None:
    streams.client.hset(streams.state_key, mapping={b"pr\xfcfer": b"ok", b"note": b"gepr\xfcft", b"epoch": b"7"})
    assert read_state(streams) == {"pr\ufffdfer": "ok", "note": "gepr\ufffdft", "epoch": "7"}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epoch", "seven", "'seven', expected a whole number: HSET it to one above"),
        ("epoch", "-1", "'-1', expected a whole number"),
        ("epoch", "", "'', expected a whole number"),
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
