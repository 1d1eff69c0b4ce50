import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_wheel_carries_the_weights_with_their_card_and_what_else_is_read_at_run_time(tmp_path: Path) -> None:
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("mhpc-*.whl")
    packaged = zipfile.ZipFile(wheel)
    read = ["mhpc/weights/tiny.safetensors", "mhpc/weights/README.md", "mhpc/py.typed", "worker/demo/report.html"]
    read += [str(path.relative_to(ROOT)) for path in (ROOT / "worker" / "streams").glob("*.lua")]
    console = ROOT / "worker" / "console"
    read += [str(path.relative_to(ROOT)) for part in ("static", "templates") for path in (console / part).iterdir()]
    for name in read:
        assert packaged.read(name) == (ROOT / name).read_bytes(), name
