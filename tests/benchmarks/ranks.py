"""A hot line on real tiles: four ranks on the CPU against one process, once with a rank killed in the middle.

The farthest of all patches is one patch: it moves by some per cent with the order that images come in, for one process
as for four. So there are several orders.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.linalg import nearest
from tests.benchmarks.tiles import KINDS, TILES
from tests.conftest import PrivateRedis
from tests.worker.faults.processes import done, patient, results, running_worker, state
from tests.worker.faults.test_ranks import processes, ranks
from worker.configuration import load_settings
from worker.engine import Engine, pick_device
from worker.message import Image, decode_pixels
from worker.metrics import Metrics
from worker.snapshots import Snapshot, SnapshotStore

LEARNED, CALIBRATED, RANKS, ORDERS = 200, 40, 4, 4
SECONDS = 1800.0

CONFIG = """
[redis]
url = "{url}"
[worker]
name = "bench"
device = "cpu"
[model]
backbone = "mobilenet_v1:mobilenet_v1"
layers = ["block5", "block11"]
precision = "float32"
[learning]
images = {learned}
converge = false
moments_share = 1.0
[calibration]
images = {calibrated}
false_positive_rate = 0.01
[scoring]
track_threshold = false
heat_map = false
[snapshots]
directory = "{folder}"
every_images = 40
[http]
port = 0
[[lines]]
name = "tile"
"""


def main() -> None:
    if not TILES.is_dir():
        print(f"{TILES} is absent: the real tiles are not at hand")
        return
    shared = str(TILES.parents[1])
    sys.path.insert(0, shared)
    os.environ["PYTHONPATH"] = os.pathsep.join([shared, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = []
    for order in range(ORDERS):
        one, expected, features = learned(running_worker, order, kill=False)
        alone = told(f"order {order}, one process", one, expected, one, features)
        for kill in (False, True) if order == 0 else (False,):
            name = f"order {order}, {RANKS} ranks{', one killed' if kill else ''}"
            merged, auroc, _ = learned(lambda config: ranks(config, RANKS), order, kill)
            radius, most = told(name, merged, auroc, one, features)
            found.append((radius / alone[0] - 1, most / alone[1] - 1, auroc - expected))
            print("  against one process: covering radius {:+.1%}, of 99.9 % {:+.1%}, AUROC {:+.4f}".format(*found[-1]))
    means = np.mean(found, 0)
    print("mean of all: covering radius {:+.1%}, of 99.9 % {:+.1%}, AUROC {:+.4f}".format(*means))


def learned(start: Callable[[Path], Any], order: int, kill: bool) -> tuple[Snapshot, float, Tensor]:
    """The line as it was calibrated, its AUROC on the test tiles, and the patches [B, P, D] that it was to learn.

    Args:
        order: 0 is that of the files' names.
    """
    train = sorted((TILES / "train" / "good").iterdir())
    if order:
        train = [train[i] for i in np.random.default_rng(order).permutation(len(train))]
    test = {kind: sorted((TILES / "test" / kind).iterdir()) for kind in ("good", *KINDS)}
    with tempfile.TemporaryDirectory() as name:
        folder, server = Path(name), PrivateRedis(Path(name))
        client = patient(server.url)
        config = folder / "bench.toml"
        config.write_text(CONFIG.format(url=server.url, folder=folder, learned=LEARNED, calibrated=CALIBRATED))
        try:
            with start(config) as process:
                send(client, train[: LEARNED // 2])
                wait(lambda: bool(SnapshotStore(folder, "tile").stems()))
                if kill:
                    os.kill(processes(process)[RANKS // 2], signal.SIGKILL)
                send(client, train[LEARNED // 2 :])
                wait(lambda: state(client, "tile").get("phase") == "scoring")
                parts = [path for paths in test.values() for path in paths]
                send(client, parts)
                wait(lambda: done(client, "tile", len(train) + len(parts)))
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            scores = {result["id"]: result["score"] for result in results(client, "tile")}
            truth = np.concatenate([np.full(len(paths), kind != "good") for kind, paths in test.items()])
            auroc = float(roc_auc_score(truth, [scores[named(path)] for path in parts]))
            found = SnapshotStore(folder, "tile").load(state(client, "tile")["model"])
            return found, auroc, features_of(config, train[:LEARNED])
        finally:
            server.kill()


def named(path: Path) -> str:
    return "/".join(path.parts[-3:])


def send(client: Any, paths: list[Path]) -> None:
    for path in paths:
        image = {"id": named(path), "format": "png" if path.suffix == ".png" else "jpeg", "data": path.read_bytes()}
        client.xadd("mhpc:{tile}:images", {"batch": msgpack.packb({"v": 1, "images": [image]})})


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s"
        time.sleep(0.1)


def features_of(config: Path, paths: list[Path]) -> Tensor:
    settings = load_settings(config, {})
    engine = Engine(settings.model, pick_device("cpu"), Metrics())
    formed = (Image("", "png" if p.suffix == ".png" else "jpeg", p.read_bytes(), None, None, None) for p in paths)
    return torch.cat(list(engine.batches(engine.prepare(decode_pixels(image, settings.limits)) for image in formed)))


def told(name: str, found: Snapshot, auroc: float, one: Snapshot, features: Tensor) -> tuple[float, float]:
    """Print what was found; the covering radius of all patches, and of 99.9 % of them, in one process' Z-space."""
    covariance, of_one = (each.tensors["scatter"] / (each.metadata["rows"] - 1) for each in (found, one))
    off = float((covariance - of_one).norm() / of_one.norm())
    mean, projection = one.tensors["whitening_mean"], one.tensors["whitening_projection"]
    z, bank = ((x - mean) @ projection.T for x in (features.flatten(0, 1), found.tensors["anchors"]))
    distances = nearest(z, bank)[0].sort().values
    radius, most = float(distances[-1]), float(distances[-len(distances) // 1000])
    print(
        f"mtd/tile, {name}: images {found.metadata['images_learned']}, rows {found.metadata['rows']}, covariance off "
        f"by {off:.1e}, bank {len(bank)}, covering radius {radius:.3f} (of 99.9 % {most:.3f}), image AUROC {auroc:.4f}",
        flush=True,
    )
    return radius, most
