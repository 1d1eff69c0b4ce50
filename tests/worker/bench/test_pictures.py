import io
from pathlib import Path

from PIL import Image as Pillow

from worker.bench import pictures
from worker.bench.pictures import as_entries, jpeg_parts, read_parts, write_parts
from worker.message import Image, decode_batch
from worker.settings import LimitSettings


def test_parts_are_distinct_jpegs_of_224_pixels_and_the_same_for_a_seed() -> None:
    parts = jpeg_parts(pictures.RENDERED + 2)
    assert len(set(parts)) == len(parts)
    assert {(Pillow.open(io.BytesIO(p)).format, Pillow.open(io.BytesIO(p)).size) for p in parts[:3]} == {
        ("JPEG", (224, 224))
    }
    assert jpeg_parts(2, seed=3) == jpeg_parts(2, seed=3) != jpeg_parts(2, seed=4)


def test_parts_come_back_from_their_file(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", [b"a", b"b"])
    assert read_parts(tmp_path / "parts") == [b"a", b"b"]


def test_entries_hold_so_many_pictures_each_and_what_is_left_over_makes_none() -> None:
    decoded = [decode_batch(entry, LimitSettings()) for entry in as_entries([b"a", b"b", b"c", b"d", b"e"], 2)]
    assert [[image.data for image in images if isinstance(image, Image)] for images in decoded] == [
        [b"a", b"b"],
        [b"c", b"d"],
    ]
