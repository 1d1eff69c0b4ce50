"""docs/integrate.md says what is so: its programs run against a real worker, its bytes are those that are sent."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import redis

from tests.conftest import PrivateRedis
from tests.docs.pages import ROOT, blocks
from tests.docs.plant import LINE, Plant
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import eventually
from worker.message import REASONS, Result, decode_batch, encode_batch
from worker.settings import LimitSettings, StreamSettings
from worker.streams.control import COMMANDS
from worker.streams.line_streams import newest_id

PAGE = ROOT / "docs" / "integrate.md"
EXAMPLES = ROOT / "docs" / "examples"
PROGRAMS = sorted(
    path.relative_to(EXAMPLES).as_posix()
    for path in EXAMPLES.rglob("*")
    if path.suffix in (".py", ".mjs") and "node_modules" not in path.parts
)
SENDERS = [name for name in PROGRAMS if "/send" in name]
READERS = [name for name in PROGRAMS if "/read" in name]
CAMERAS = [name for name in PROGRAMS if "/camera" in name]
GOLDEN = ROOT / "tests" / "worker" / "golden" / "batch-raw.msgpack"


def command(program: str) -> str:
    """How a program is started; skips where that needs a Node that is not here."""
    if program.endswith(".py"):
        return f"{sys.executable} {EXAMPLES / program}"
    if shutil.which("node") is None:
        pytest.skip("no node on the PATH: Debian's package nodejs has it")
    if not (EXAMPLES / "node" / "node_modules").is_dir():
        pytest.skip("the examples' packages are absent: npm install --no-package-lock --prefix docs/examples/node")
    return f"node {EXAMPLES / program}"


def test_the_programs_on_the_page_are_the_files_and_all_of_them() -> None:
    shown = [block.text for block in blocks(PAGE) if block.language in ("python", "js")]
    assert sorted(shown) == sorted((EXAMPLES / name).read_text() for name in PROGRAMS)
    assert sorted(re.findall(r"^\[(.+)\]\(examples/\1\):$", PAGE.read_text(), re.MULTILINE)) == PROGRAMS
    assert sorted(SENDERS + READERS + CAMERAS) == PROGRAMS


def test_the_bytes_on_the_page_are_those_of_a_golden_message() -> None:
    (table,) = [block.text for block in blocks(PAGE) if block.text.startswith("82 ")]
    shown = bytes.fromhex("".join(line[:30] for line in table.splitlines()))
    assert shown == GOLDEN.read_bytes()
    (image,) = decode_batch(shown, LimitSettings())
    assert encode_batch([image]) == shown  # type: ignore[list-item]  # were it rejected, this would fail
    assert f"A whole message of {len(shown)} bytes" in PAGE.read_text()
    for line in table.splitlines():  # texts are spelled out beside their bytes
        if quoted := re.search(r'"(.+)"', line[30:]):
            assert bytes.fromhex(line[:30]).endswith(quoted[1].encode())


def test_the_tables_name_every_field_reason_and_command() -> None:
    text = PAGE.read_text()
    fields = {*Result.__annotations__, "v"}
    named = {name for row in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert fields | set(REASONS) | set(COMMANDS) <= named
    limits = LimitSettings()
    for number in (f"{limits.image_side:,} pixels", f"{limits.images_per_entry}", "64 MiB", "16 KiB", "40 million"):
        assert number in text
    assert (limits.entry_bytes, limits.meta_bytes, limits.image_pixels) == (64 << 20, 16 << 10, 40_000_000)


def test_the_window_is_set_as_the_page_says() -> None:
    (table,) = [tomllib.loads(block.text) for block in blocks(PAGE) if block.language == "toml"]
    assert StreamSettings(**table["streams"]).unique_ids == 1000
    assert "Retry(window=1000)" in PAGE.read_text()


def test_what_node_packs_is_byte_for_byte_what_python_packs() -> None:
    command("node/send.mjs")
    script = """import { decode, encode } from "@msgpack/msgpack"; import { readFileSync } from "node:fs";
        process.stdout.write(encode(decode(readFileSync(process.argv[1]))));"""
    for path in GOLDEN.parent.glob("batch-*.msgpack"):
        packed = subprocess.run(
            ["node", "--input-type=module", "--eval", script, str(path)],  # noqa: S607 - any node will do
            cwd=EXAMPLES / "node", capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert packed == path.read_bytes()


@pytest.mark.parametrize("program", SENDERS)
def test_a_program_that_sends_is_answered(plant: Plant, program: str) -> None:
    name = program.replace("/", "-")
    (plant.folder / f"{name}.jpg").write_bytes((plant.folder / "part.jpg").read_bytes())
    entry = plant.run(f"{command(program)} {LINE} {name}.jpg").strip()
    result = eventually(lambda: plant.results().get(f"{name}.jpg", {}))
    assert (result["entry"], result["anomalous"]) == (entry, False)
    assert result["ts"] == pytest.approx(int(entry.split("-")[0]) / 1000, abs=60)


@pytest.mark.parametrize("program", READERS)
def test_a_program_that_reads_follows_the_results(plant: Plant, program: str) -> None:
    said = plant.run_until(f"{command(program)} {LINE}", "fed-painted-5: ANOMALOUS")  # the lines before it are whole
    assert re.search(r"^fed-painted-1: ANOMALOUS, score \d+\.\d+, threshold \d+\.\d+$", said, re.MULTILINE)
    assert re.search(r"^learn-0: no verdict yet, score (None|null), threshold (None|null)$", said, re.MULTILINE)
    last = newest_id(plant.client, f"mhpc:{{{LINE}}}:scores")
    assert "learn-0:" not in plant.run_until(f"{command(program)} {LINE} {last}", "fed-")


@pytest.mark.parametrize("program", CAMERAS)
def test_a_camera_sends_a_folder_once(plant: Plant, program: str) -> None:
    name = program.replace("/", "-")
    folder = plant.folder / name
    (folder / name).mkdir(parents=True)
    for file in (plant.folder / "FOLDER").iterdir():
        (folder / name / file.name).write_bytes(file.read_bytes())
    (folder / "bad.png").write_text("no picture")
    said = plant.run(f"{command(program)} {LINE} {folder}")
    assert "bad.png: 10 bytes that are none of" in said
    wanted = {f"{name}/part-{number}.jpg" for number in range(8)}
    eventually(lambda: wanted <= plant.results().keys())


@pytest.fixture
def proxy(plant: Plant) -> Iterator[Proxy]:
    proxy = Proxy(plant.redis_port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("program", SENDERS)
def test_a_lost_reply_ends_a_program_that_sends_and_adds_nothing_twice(
    plant: Plant, proxy: Proxy, program: str
) -> None:
    line = program.replace("/", "-").replace(".", "-")
    proxy.drop_reply(b"XADD")
    ended = subprocess.run(
        [*command(program).split(), line, str(plant.folder / "part.jpg")],
        env={**os.environ, "REDIS_URL": proxy.url}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert proxy.dropped == 1
    assert ended.returncode != 0
    assert plant.client.xlen(f"mhpc:{{{line}}}:images") == 1


@pytest.mark.parametrize("program", READERS)
def test_a_program_that_reads_goes_on_after_what_is_no_result_and_after_a_redis_that_restarts(
    plant: Plant, private_redis: PrivateRedis, program: str
) -> None:
    def publish(fields: dict[str, bytes]) -> None:
        client: Any = redis.Redis(port=private_redis.port)
        client.xadd(f"mhpc:{{{LINE}}}:scores", fields)

    def result(identity: str) -> dict[str, bytes]:
        return {"result": msgpack.packb({"id": identity, "anomalous": False, "score": 1.5, "threshold": 2.5})}

    for broken in ({"result": b"\xc1"}, {"result": b"\x07"}, {"other": b""}, result("before")):
        publish(broken)
    with plant.started(f"env REDIS_URL={private_redis.url} {command(program)} {LINE}") as (process, log):
        eventually(lambda: "before: ok, score 1.5, threshold 2.5" in log.read_text())
        private_redis.kill()
        private_redis.start()
        publish(result("after"))
        eventually(lambda: process.poll() is not None or "after: ok" in log.read_text())
        assert process.poll() is None, log.read_text()
        assert len(re.findall(r"^\d+-\d+ is no result: ", log.read_text(), re.MULTILINE)) == 3


def test_the_commands_of_redis_that_the_page_gives_are_taken_by_one(plant: Plant) -> None:
    admin: Any = redis.Redis(port=plant.redis_port, protocol=2)
    admin.acl_setuser("producer", enabled=True, commands=["+xadd"])
    given = [line.split() for block in blocks(PAGE) if block.language == "redis" for line in block.text.splitlines()]
    assert [call[0] for call in given] == ["XADD", "XREAD", "ACL"]
    values = {"MESSAGE": GOLDEN.read_bytes(), "LAST": "0"}
    for call in given:
        assert admin.execute_command(*(values.get(part, part) for part in call))
    assert {"+xadd", "+xlen", "+xinfo|groups"} <= set(admin.acl_getuser("producer")["commands"])
    admin.acl_deluser("producer")
