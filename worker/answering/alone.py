"""An entry by itself, image by image, each marked before it is tried: what took the process down is found again."""

from collections.abc import Callable, Iterator

import redis
import structlog
import torch
from torch import Tensor

from mhpc.core.devices import is_device_failure
from mhpc.core.patch_maps import PatchMaps
from worker.answering.answers import Opened
from worker.answering.opening import Opening
from worker.errors import RejectedError, one_line
from worker.keeping.reading import ATTEMPTS
from worker.message import Image, Rejected

log = structlog.get_logger()

Judge = Callable[[list[tuple[Opened, Image]], PatchMaps], None]  # fills in verdicts by features


class GivesUpLaterError(Exception):
    """An entry failed as a whole, and is to be tried again."""


def judge_alone(opening: Opening, opened: Opened, judge: Judge) -> Iterator[None]:
    """Judge an entry's images one by one, by a step each; what failed ATTEMPTS times goes to its `rejected`.

    Between two steps no image is marked but those that are given up: what ends the process then is not theirs.

    Raises:
        GivesUpLaterError: it could not be split into images.
        redis.ResponseError: a mark is refused.
        torch.OutOfMemoryError: the device has no memory for a single image.
        RuntimeError: the device has failed (`is_device_failure`).
    """
    streams = opening.streams[opened.name]
    given_up = []  # their marks stay until all are through: the next may yet take the process down
    for place, image in enumerate(_split(opening, opened)):
        opening.engine.beat()  # of those that are not judged, too: many large ones take long
        mark = f"{opened.entry.id}/{place}"
        error = f"the process ended {ATTEMPTS} times with this image in hand: it crashed, or its device failed"
        while streams.mark(mark) <= ATTEMPTS:
            try:
                x = _decoded(opening, opened, image)
                if x is not None and opening.is_first(opened.name, image, opened.entry, place):
                    judge([(opened, image)], opening.engine.maps([x]))
                streams.unmark(mark)
                break
            except (torch.OutOfMemoryError, redis.RedisError):
                raise  # memory that another process takes is lacking for all images, and there again in a while
            except Exception as failure:
                if is_device_failure(failure):
                    raise
                log.exception("an image failed", line=opened.name, entry=opened.entry.id, id=image.id)
                error = f"failed {ATTEMPTS} times: {type(failure).__name__}: {one_line(failure, 300)}"
        else:
            opened.rejected.append(Rejected(image.id, "failed", error, image.data))
            given_up.append(mark)
            streams.disown(image.id, opened.entry.id, place)
        yield
    streams.unmark(*given_up)


def _decoded(opening: Opening, opened: Opened, image: Image) -> Tensor | None:
    try:
        with opening.metrics.stage("decode"):
            return opening.decode(image)
    except RejectedError as error:
        opened.rejected.append(Rejected(image.id, error.reason, str(error), image.data))
        return None


def _split(opening: Opening, opened: Opened) -> list[Image]:
    streams, mark = opening.streams[opened.name], f"{opened.entry.id}/"
    if streams.mark(mark) > ATTEMPTS:
        error = f"splitting the entry into its images failed {ATTEMPTS} times"
        opened.rejected.append(Rejected("", "failed", error, opened.entry.batch or b""))
        images = []
    else:
        try:
            images = opening.images(opened.entry, opened.rejected)
        except Exception as error:
            log.exception("an entry failed", line=opened.name, entry=opened.entry.id)
            raise GivesUpLaterError from error
    streams.unmark(mark)
    return images
