"""What the worker's tests share: pictures, messages, settings, and waiting for what other processes do."""

import io
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgpack
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from mhpc.core.patch_maps import PatchMaps
from worker.configuration import load_settings
from worker.line import Line
from worker.records import Verdict
from worker.scoring import verdicts_of
from worker.settings import Settings

DEADLINE_SECONDS = 60.0  # for what takes a moment here, but longer on a machine that is busy

T = TypeVar("T")


def eventually(what: Callable[[], T], seconds: float = DEADLINE_SECONDS) -> T:
    """The first true value that `what` gives."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.02)
    return value


def picture(seed: int = 0, h: int = 40, w: int = 48) -> NDArray[np.uint8]:
    """Pixels [h, w, 3] of a noisy grey part."""
    return np.random.default_rng(seed).normal(128, 12, (h, w, 3)).clip(0, 255).astype(np.uint8)


def encoded(pixels: NDArray[Any], form: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Pillow.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def item(identity: Any = "a", **changes: Any) -> dict[str, Any]:
    """One image of a message, a good PNG unless changed; a change to None leaves the key out."""
    seed = int(identity) if isinstance(identity, str) and identity.isdigit() else 0
    fields = {"id": identity, "format": "png", "data": encoded(picture(seed)), **changes}
    return {key: value for key, value in fields.items() if value is not None}


def message(*items: Any, **changes: Any) -> bytes:
    """The value of a `batch` field."""
    packed: bytes = msgpack.packb({"v": 1, "images": list(items), **changes}, unicode_errors="surrogateescape")
    return packed


def small_settings(*lines: str, **sections: Any) -> Settings:
    """A worker with a small, untrained backbone; sections are laid over it."""
    base: dict[str, Any] = {
        "worker": {"name": "station-1", "device": "cpu"},
        "model": {
            "backbone": "resnet18",
            "weights": "random:0",
            "input_shape": (64, 64),
            "bank_size": 200,
            "precision": "float32",
        },
        "learning": {"images": 16},
        "calibration": {"images": 20, "false_positive_rate": 0.05},
        "http": {"port": 0},
        "lines": [{"name": name} for name in lines],
    }
    merged = {name: {**base.get(name, {}), **value} for name, value in sections.items()}
    return load_settings(None, {**base, **merged})


def patches(seed: int, images: int = 1, shift: float = 0.0) -> Tensor:
    """Patch features [images, 16, 6] of normal parts; those of a part far from normal with a shift."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 16, 6, generator=generator) * torch.linspace(0.5, 2, 6) + shift


class LosesReplies:
    """A way to Redis that passes every command on, and now and then loses the connection instead of the reply.

    `loses` is asked for each reply, with the command before it.
    """

    def __init__(self, port: int, loses: Callable[[bytes], bool]) -> None:
        self.target = port
        self.loses = loses
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._pass_on, args=[self._listener.accept()[0]], daemon=True).start()

    def _pass_on(self, caller: socket.socket) -> None:
        command = b""

        def send() -> None:
            nonlocal command
            with suppress(OSError):
                while data := caller.recv(1 << 20):
                    command = data
                    server.sendall(data)

        with caller, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            threading.Thread(target=send, daemon=True).start()
            while reply := server.recv(1 << 20):
                if self.loses(command):
                    self.lost += 1
                    break
                caller.sendall(reply)
            caller.shutdown(socket.SHUT_RDWR)


def judge(line: Line, features: Tensor, grid: tuple[int, int]) -> list[Verdict]:
    """A line's verdicts on images by their features [B, P, D]."""
    return verdicts_of(line.scores_by()(PatchMaps.of_features(features, grid)))
