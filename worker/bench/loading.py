"""What no start can do without: `python -m worker.bench.loading CONFIG OUT` imports torch and loads the weights.

It writes the monotonic time at which both were there; on Linux all processes share that clock.
"""

import sys
import time
from pathlib import Path

from mhpc.core.backbones import load_backbone
from worker.configuration import load_settings

if __name__ == "__main__":
    config, out = sys.argv[1:]
    model = load_settings(Path(config)).model
    load_backbone(model.backbone, model.weights_source)
    Path(out).write_text(repr(time.monotonic()))
