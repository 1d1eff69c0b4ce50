"""A deployment as the docs describe it, in a folder of its own: Redis, a worker by config.example.toml, a camera.

The commands of the docs are run in it as they stand. What cannot be as they say is changed for all of them alike: the
ports, since others run here, and the sizes, by the environment, so that a line scores within seconds.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import free_port
from tests.worker.helpers import DEADLINE_SECONDS, eventually
from worker.demo.parts import encode_jpeg, render
from worker.message import Image, decode_result
from worker.producer import Producer, connect

ROOT = Path(__file__).parents[2]
LINE = "press-3"
LEARN, CALIBRATE = 32, 20
LEARNED = 100  # number of the first part that is learned
SIZES = {
    "MHPC_MODEL__INPUT_SHAPE": "[64, 64]",
    "MHPC_LEARNING__IMAGES": str(LEARN),
    "MHPC_LEARNING__CONVERGE": "false",
    "MHPC_CALIBRATION__IMAGES": str(CALIBRATE),
    "MHPC_CALIBRATION__FALSE_POSITIVE_RATE": "0.05",
    "MHPC_STREAMS__UNIQUE_IDS": "1000",
    "MHPC_WORKER__DEVICE": "cpu",
}


class Plant:
    """Attributes: `folder` is where commands run, `url` Redis, `port` the worker's HTTP port."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.port = folder, url, free_port()
        self.client = connect(url)
        bins = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        outer = {name: value for name, value in os.environ.items() if not name.startswith("MHPC_")}
        own = {"MHPC_REDIS__URL": url, "MHPC_HTTP__PORT": str(self.port), "MHPC_CONSOLE__PORT": "0", "REDIS_URL": url}
        self.environment = {**outer, **SIZES, **own, "PATH": bins, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}

    def adapted(self, command: str) -> str:
        """The command with the ports and the folders that are used here."""
        command = command.replace("127.0.0.1:9108", f"127.0.0.1:{self.port}")
        command = command.replace(" /etc/", f" {self.folder}/etc/").replace(" /var/lib/mhpc", f" {self.folder}")
        return command.replace("redis-cli ", f"redis-cli -p {self.redis_port} ")

    @property
    def redis_port(self) -> int:
        return int(self.client.connection_pool.connection_kwargs["port"])

    def run(self, command: str, seconds: float = DEADLINE_SECONDS) -> str:
        """What a command that ends well prints, on both outputs."""
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.adapted(command)],  # noqa: S607 - any bash will do
            cwd=self.folder, env=self.environment, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert ended.returncode == 0, f"{command}\nended with {ended.returncode}:\n{ended.stdout}"
        return ended.stdout

    def run_until(self, command: str, text: str, seconds: float = DEADLINE_SECONDS) -> str:
        """What a command that goes on has printed by the time of this text; it is interrupted then, as by Ctrl-C."""
        with self.started(command) as (process, log):

            def said() -> bool:
                assert process.poll() is None or text in log.read_text(), f"{command}\nended:\n{log.read_text()}"
                return text in log.read_text()

            eventually(said, seconds)
            return log.read_text()

    @contextmanager
    def started(self, command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """A command that goes on, and the file of what it prints; interrupted at the end, with all that it started."""
        path = self.folder / f"log-{time.monotonic_ns()}"
        with path.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self.adapted(command)}"],  # noqa: S607 - any bash will do
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield process, path
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def state(self, field: str) -> str:
        value: Any = self.client.hget(f"mhpc:{{{LINE}}}:state", field)
        return value.decode() if value else ""

    def results(self) -> dict[str, dict[str, Any]]:
        """By id; of an id that was answered twice, which a test would have to see, both."""
        found: dict[str, dict[str, Any]] = {}
        entries: Any = self.client.xrange(f"mhpc:{{{LINE}}}:scores")
        for _, fields in entries:
            result = decode_result(fields[b"result"])
            assert result["id"] not in found, f"{result['id']} was answered twice"
            found[result["id"]] = result
        return found

    def part_in_review(self) -> tuple[str, str]:
        """Entry and id of the newest one."""
        found: Any = eventually(lambda: self.client.xrevrange(f"mhpc:{{{LINE}}}:review", count=1))
        return found[0][1][b"entry"].decode(), found[0][1][b"id"].decode()


class Feeding:
    """A camera that goes on while the commands are tried: now and then a painted part, or half of a file."""

    def __init__(self, plant: Plant) -> None:
        self._producer = Producer(plant.client, LINE, rate=4)
        self._good = [encode_jpeg(render("good", number)[0]) for number in range(8)]
        painted = render("good", 8)[0]
        painted[60:200, 60:200] = (255, 0, 0)
        self._painted = encode_jpeg(painted)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._feed)

    def learn(self) -> None:
        """Parts to learn from and to calibrate on, at once."""
        parts = [render("good", LEARNED + number)[0] for number in range(LEARN + CALIBRATE)]
        fast = Producer(self._producer.client, LINE, max_ahead=None)
        for number, pixels in enumerate(parts):
            fast.add(Image(f"learn-{number}", "jpeg", encode_jpeg(pixels)))
        fast.close()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _feed(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            images = [Image(f"fed-{number}", "jpeg", self._good[number % 8])]
            if number % 4 == 1:
                images.append(Image(f"fed-painted-{number}", "jpeg", self._painted))
            if number % 4 == 2:
                images.append(Image(f"fed-cut-{number}", "jpeg", self._good[0][: len(self._good[0]) // 2]))
            self._producer.send(images, self._ended)


@contextmanager
def plant_of(folder: Path, url: str) -> Iterator[Plant]:
    """A plant whose worker scores, and whose camera goes on; made by the docs' own commands."""
    plant = Plant(folder, url)
    (folder / "etc/systemd/system").mkdir(parents=True)
    for name in ("config.example.toml", "deploy", "docs", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    parts = folder / "FOLDER"
    parts.mkdir()
    for number in range(8):
        (parts / f"part-{number}.jpg").write_bytes(encode_jpeg(render("good", 50 + number)[0]))
    (folder / "part.jpg").write_bytes(encode_jpeg(render("good", LEARNED)[0]))  # no false alarm: it was learned
    plant.run("cp config.example.toml config.toml")
    feeding = Feeding(plant)
    with plant.started("mhpc-worker run --config config.toml") as (process, log):

        def scores() -> bool:
            assert process.poll() is None, log.read_text()
            return plant.state("phase") == "scoring"

        feeding.learn()
        eventually(scores, 2 * DEADLINE_SECONDS)
        with feeding:
            eventually(lambda: plant.client.xlen(f"mhpc:{{{LINE}}}:dead"))
            yield plant
