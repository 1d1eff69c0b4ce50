"""A folder of pictures as the demo's parts: in the MVTec layout, or flat."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from worker.demo.parts import Mask, Part, Split
from worker.errors import ConfigurationError, RejectedError
from worker.pictures.decoding import decode
from worker.producer import as_image, picture_files
from worker.settings import LimitSettings

CALIBRATE_SHARE = 6  # one in six of the pictures that train calibrates, the others are learned
LEAST = 20  # of those that are learned, and of those that calibrate


@dataclass(frozen=True)
class PictureFolder:
    """`parts` in the order in which they are to be played; `notes`: how it was read, what was left out."""

    parts: list[Part]
    notes: list[str]


def read_folder(folder: Path, seed: int = 0) -> PictureFolder:
    """Sort a folder's pictures into those to learn, to calibrate and to score.

    MVTec layout: FOLDER/train/good trains, FOLDER/test/KIND is scored, FOLDER/ground_truth/KIND/NAME_mask.png are the
    masks, where there are any. Any other folder is flat: half of all pictures under it trains, the others are scored,
    and nobody knows which are defective. Of the pictures that train one sixth calibrates; which, `seed` draws, so that
    calibration is like learning.

    Raises:
        ConfigurationError: there is no such folder, it holds no pictures, or too few.
    """
    if (folder / "train" / "good").is_dir():
        return _mvtec(folder, np.random.default_rng(seed))
    below = sorted(path.parent.parent.name for path in folder.glob("*/train/good"))
    if below:
        raise ConfigurationError(f"{folder} holds several sets of pictures; name one of them: {', '.join(below)}")
    return _flat(folder, np.random.default_rng(seed))


def _mvtec(folder: Path, rng: np.random.Generator) -> PictureFolder:
    train, bad_train = _readable(folder, picture_files(folder / "train" / "good"))
    test, bad_test = _readable(folder, picture_files(folder / "test"))
    learn, calibrate = _split(folder, train, rng)
    parts = [_part(folder, path, "learn", "good") for path in learn]
    parts += [_part(folder, path, "calibrate", "good") for path in calibrate]
    parts += [_part(folder, path, "test", _kind(folder, path)) for path in _shuffled(test, rng)]
    kinds = len({part.kind for part in parts if part.defective})
    note = f"{folder}: MVTec layout; {len(learn)} to learn, {len(calibrate)} to calibrate, {len(test)} to score"
    return PictureFolder(parts, [f"{note}, {kinds} kinds of defects", *bad_train, *bad_test])


def _kind(folder: Path, path: Path) -> str | None:
    kind, *rest = path.relative_to(folder / "test").parts
    return kind if rest else None  # a picture beside the folders of kinds


def _flat(folder: Path, rng: np.random.Generator) -> PictureFolder:
    files, bad = _readable(folder, picture_files(folder))
    files = _shuffled(files, rng)
    half = max(len(files) // 2, 2 * LEAST)
    if len(files) <= half:
        raise ConfigurationError(
            f"{folder}: {len(files)} pictures that can be read; at least {2 * LEAST + 1} are needed to learn "
            f"({LEAST}), calibrate ({LEAST}) and score"
        )
    learn, calibrate = _split(folder, files[:half], rng)
    parts = [_part(folder, path, "learn", None) for path in learn]
    parts += [_part(folder, path, "calibrate", None) for path in calibrate]
    parts += [_part(folder, path, "test", None) for path in files[half:]]
    note = (
        f"{folder}: a flat folder, so nobody knows which parts are defective; drawn at random, {len(learn)} to learn, "
    )
    return PictureFolder(parts, [f"{note}{len(calibrate)} to calibrate, {len(files) - half} to score", *bad])


def _split(folder: Path, train: Sequence[Path], rng: np.random.Generator) -> tuple[list[Path], list[Path]]:
    if len(train) < 2 * LEAST:
        raise ConfigurationError(
            f"{folder}: {len(train)} pictures of good parts that can be read; at least {2 * LEAST} are needed to learn "
            f"({LEAST}) and calibrate ({LEAST})"
        )
    shuffled = _shuffled(train, rng)
    learned = len(train) - max(len(train) // CALIBRATE_SHARE, LEAST)
    return shuffled[:learned], shuffled[learned:]


def _shuffled(files: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    return [files[i] for i in rng.permutation(len(files))]


def _readable(folder: Path, files: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files that a worker will accept, by its own rules, and a line for each of the others."""
    limits = LimitSettings()

    def problem(path: Path) -> str | None:
        try:
            decode(as_image(path.name, path.read_bytes()), limits)
        except (RejectedError, OSError) as error:
            return f"left out: {path.relative_to(folder)}: {error}"
        return None

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        problems = list(pool.map(problem, files))
    good = [path for path, text in zip(files, problems, strict=True) if text is None]
    return good, [text for text in problems if text is not None]


def _part(folder: Path, path: Path, split: Split, kind: str | None) -> Part:
    name = path.relative_to(folder).as_posix()
    mask = folder / "ground_truth" / str(kind) / f"{path.stem}_mask.png"
    return Part(name, split, kind, path.read_bytes, lambda: _mask(mask) if kind not in (None, "good") else None)


def _mask(path: Path) -> Mask | None:
    if not path.is_file():
        return None
    with Pillow.open(path) as picture:
        return np.asarray(picture.convert("L")) > 127
