"""Plays pictures into a line's stream, as a camera's computer would. Imports no torch.

XADD is not idempotent, so a client with redis-py's default retries would add an entry twice when one reply is lost.
`connect` gives clients that repeat nothing; what may be repeated, `Retry` says.
"""

from worker.producer.asynchronous import AsyncProducer, connect_async
from worker.producer.blocking import Producer, connect, produce
from worker.producer.collecting import batches
from worker.producer.flow import MAX_AHEAD, Retry
from worker.producer.pictures import SUFFIXES, as_image, folder_images, picture_files

__all__ = [
    "MAX_AHEAD",
    "SUFFIXES",
    "AsyncProducer",
    "Producer",
    "Retry",
    "as_image",
    "batches",
    "connect",
    "connect_async",
    "folder_images",
    "picture_files",
    "produce",
]
