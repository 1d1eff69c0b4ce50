"""Pictures of a folder as images that travel."""

import io
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from worker.errors import ConfigurationError, RejectedError
from worker.message import Image
from worker.producer.collecting import check
from worker.settings import LimitSettings

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def picture_files(folder: Path) -> list[Path]:
    """The pictures under a folder, by suffix and in the order of their names; hidden ones are left out.

    Raises:
        ConfigurationError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder; name a folder of pictures ({', '.join(SUFFIXES)})")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in found if not _hidden(path.relative_to(folder)) and path.is_file()]
    if not files:
        raise ConfigurationError(f"{folder}: no pictures in it; expected files that end in {', '.join(SUFFIXES)}")
    return sorted(files)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def as_image(identity: str, data: bytes) -> Image:
    """A picture file's bytes as they travel: JPEG and PNG as they are, other formats as PNG.

    Raises:
        RejectedError: Pillow cannot read them.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=Pillow.DecompressionBombWarning):
            picture: Pillow.Image = Pillow.open(io.BytesIO(data), formats=PILLOW_FORMATS)
        forms: dict[str | None, Literal["jpeg", "png"]] = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
        if (form := forms.get(picture.format)) is not None:
            return Image(identity, form, data, ts=time.time())
        if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):  # of which 16 bits read as I
            raise ValueError(f"its values (mode {picture.mode}) are neither of 8 nor of 16 bits without a sign")
        if not picture.mode.startswith("I;16"):
            picture = picture.convert("I;16" if picture.mode == "I" else "RGB")
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
    except UnidentifiedImageError:
        raise RejectedError("not_an_image", f"{len(data)} bytes that are none of {', '.join(PILLOW_FORMATS)}") from None
    except (Pillow.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise RejectedError("not_an_image", str(error)) from None
    return Image(identity, "png", buffer.getvalue(), ts=time.time())


def folder_images(folder: Path, skipped: Callable[[str], None], loop: bool = False) -> Iterator[Image]:
    """The pictures of a folder, read one by one, with their relative paths as ids.

    What is no picture, or one that no worker would take, goes to `skipped`, with the reason. With `loop` they come
    again and again; from the second round on, `#2`, `#3`, ... is appended so that ids stay unique.
    """
    files, limits = picture_files(folder), LimitSettings()
    round_, more = 1, True
    while more:
        more = False
        for path in files:
            name = path.relative_to(folder).as_posix()
            try:
                image = as_image(name if round_ == 1 else f"{name}#{round_}", path.read_bytes())
                check(image, limits)
            except (RejectedError, OSError) as error:
                if round_ == 1:
                    skipped(f"{name}: {error}")
                continue
            more = loop
            yield image
        round_ += 1
