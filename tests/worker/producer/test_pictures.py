"""Pictures of a folder, and of a file, as they travel."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from mhpc.evaluation.mvtec import read_pixels
from worker.errors import ConfigurationError, RejectedError
from worker.message import decode_pixels
from worker.producer import as_image, folder_images, picture_files
from worker.settings import LimitSettings


def encoded(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Pillow.new(mode, size).save(buffer, form)
    return buffer.getvalue()


def test_jpeg_and_png_travel_as_they_are() -> None:
    for form, name in (("JPEG", "jpeg"), ("PNG", "png")):
        data = encoded(form)
        image = as_image("a", data)
        assert (image.format, image.data) == (name, data)


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_other_formats_travel_as_png(form: str) -> None:
    image = as_image("a", encoded(form))
    assert image.format == "png"
    assert decode_pixels(image, LimitSettings()).shape == (6, 8, 3)


def test_sixteen_bits_stay_sixteen_bits() -> None:
    buffer = io.BytesIO()
    Pillow.new("I;16", (4, 4), 0x8000).save(buffer, "TIFF")
    assert decode_pixels(as_image("a", buffer.getvalue()), LimitSettings()).max() == 0x80


@pytest.mark.parametrize("order", ["II", "MM"])
def test_sixteen_bits_of_a_tiff_stay_in_either_byte_order(tmp_path: Path, order: str) -> None:
    buffer = io.BytesIO()
    ramp = np.array([[0, 300, 30_000, 65_535]], ">u2" if order == "MM" else "<u2")
    Pillow.fromarray(ramp).save(buffer, "TIFF")
    assert buffer.getvalue()[:2] == order.encode()
    assert decode_pixels(as_image("a", buffer.getvalue()), LimitSettings())[0, :, 0].tolist() == [0, 1, 117, 255]


def test_a_pgm_of_sixteen_bits_is_what_the_library_reads_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 65535\n" + np.array([0, 300, 30_000, 65_535], ">u2").tobytes())
    image = as_image("a", (tmp_path / "a.pgm").read_bytes())
    assert decode_pixels(image, LimitSettings())[0, :, 0].tolist() == [0, 1, 117, 255]
    np.testing.assert_array_equal(decode_pixels(image, LimitSettings()), read_pixels(tmp_path / "a.pgm"))


@pytest.mark.parametrize("data", [b"", b"text", encoded("BMP")[:60], encoded("TIFF", "F"), encoded("TIFF", "I")])
def test_what_pillow_cannot_read_is_rejected(data: bytes) -> None:
    with pytest.raises(RejectedError):
        as_image("a", data)


def test_a_folder_gives_its_pictures_by_name_and_skips_the_others(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.png", "a.png", "b/1.jpg"):
        Pillow.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "c.png").write_text("text")
    (tmp_path / "notes.txt").write_text("text")
    skipped: list[str] = []
    assert [image.id for image in folder_images(tmp_path, skipped.append)] == ["a.png", "b/1.jpg", "b/2.png"]
    assert len(skipped) == 1
    assert skipped[0].startswith("c.png: 4 bytes that are none of BMP, GIF, JPEG")


def test_a_loop_gives_fresh_ids_each_round_and_ends_where_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("text")
    skipped: list[str] = []
    assert list(folder_images(tmp_path, skipped.append, loop=True)) == []
    Pillow.new("RGB", (4, 4)).save(tmp_path / "a.png")
    looped = itertools.islice(folder_images(tmp_path, skipped.append, loop=True), 3)
    assert [image.id for image in looped] == ["a.png", "a.png#2", "a.png#3"]
    assert len(skipped) == 2  # once for each call


def test_a_folder_without_pictures_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no pictures in it"):
        picture_files(tmp_path)
    with pytest.raises(ConfigurationError, match="no such folder"):
        picture_files(tmp_path / "nowhere")
