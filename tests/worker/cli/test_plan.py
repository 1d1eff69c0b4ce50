import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, Block, blocks, commands
from tests.worker.bench.helpers import figures
from tests.worker.calling import Call
from worker.cli.plan import count, size, speed
from worker.costs import BUNDLED, REDIS

PAGE = ROOT / "docs" / "scale.md"


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(figures().as_json()))
    return path


def printed(call: Call, *arguments: str | Path) -> str:
    ended = call("plan", *arguments)
    assert (ended.code, ended.err) == (0, "")
    return "\n".join(line.rstrip() for line in ended.out.splitlines()).strip()


def document(call: Call, *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(call, *arguments, "--json"))
    return found


@pytest.mark.parametrize("lines", ["1", "10000", "1000000000"])
def test_a_plan_fits_into_80_columns(call: Call, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(call, "--lines", lines, "--rate", "50")
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_costs_of_no_machine_of_ones_own_are_said_to_be_so(call: Call, bench: Path) -> None:
    told = " ".join(printed(call).split())
    assert "No --costs: reckoned with the bundled backbone on two x86 cores, measured on 24 November 2026" in told
    assert "Yours differ" in told
    own = " ".join(printed(call, "--costs", bench).split())
    assert "No --costs" not in own
    assert "120 images/s scoring, 60 learning" in own


def test_faster_workers_are_fewer(call: Call, bench: Path) -> None:
    told = json.loads(bench.read_text())
    for phase in ("scoring", "learning"):
        told[phase]["images_per_second"] *= 100
    bench.write_text(json.dumps({**told, "forward": {**told["forward"], "device": "NVIDIA H100"}}))
    slow, fast = document(call, "--lines", "2000"), document(call, "--lines", "2000", "--costs", bench)
    assert fast["plan"]["workers"] < slow["plan"]["workers"]
    assert "workers with a GPU, a shard" in printed(call, "--costs", bench)
    assert "reckoned, not measured" in " ".join(printed(call, "--costs", bench).split())


def test_json_tells_what_was_asked_what_was_measured_and_what_follows(call: Call) -> None:
    found = document(call, "--lines", "3", "--rate", "2", "--image-kb", "100", "--no-heat-map")
    assert found.keys() == {"workload", "worker_costs", "redis_costs", "plan"}
    assert (found["workload"]["image_bytes"], found["workload"]["heat_map"]) == (100_000, False)
    assert found["worker_costs"] == vars(BUNDLED)
    assert found["redis_costs"] == vars(REDIS)
    assert found["plan"]["images_per_second"] == 6


def test_nothing_need_learn_or_wait_for_long(call: Call) -> None:
    found = document(call, "--learning-share", "0", "--backlog-seconds", "0")["plan"]
    assert found["snapshot_writes"] == 0


def test_another_bank_than_was_measured_is_told(call: Call) -> None:
    told = " ".join(printed(call, "--bank-size", "1000").split())
    assert "memory and storage follow it, images/s do not" in told
    assert "follow it" not in printed(call, "--bank-size", "6000")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--rate 0", "--rate 0: expected a number above 0"),
        ("--rate nan", "--rate nan: expected a number above 0"),
        ("--rate inf", "--rate inf: expected a number above 0"),
        ("--rate 5e-324", "--rate 4.94066e-324: expected a number above 0"),
        ("--image-kb -1", "--image-kb -1: expected a number above 0"),
        ("--headroom 0", "--headroom 0: expected a share above 0, of at most 1"),
        ("--headroom 1.5", "--headroom 1.5: expected a share above 0"),
        ("--learning-share -0.1", "--learning-share -0.1: expected a share"),
        ("--lines 0", "Invalid value for '--lines'"),
        (f"--bank-size 1{'0' * 400}", "Invalid value for '--bank-size'"),
        ("--costs absent.json", "--costs absent.json: No such file or directory; write it by mhpc-worker bench --json"),
        ("--rate 9000", "more than one redis-server's CPU takes at --headroom 0.7; lower --rate"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(call: Call, arguments: str, said: str) -> None:
    ended = call("plan", *arguments.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("told", "expected"),
    [(count(0.25), "0.25"), (count(500_000), "500,000"), (size(0), "0 B"), (size(31.5e9), "31.5 GB"),
     (size(999.7e9), "1 TB"), (size(2.45e15), "2.45 PB"), (size(4e18), "4,000 PB"), (speed(125e6), "1 Gbit/s"),
     (speed(0.1), "0.8 bit/s")],
)  # fmt: skip
def test_figures_are_told_in_the_unit_that_suits_them(told: str, expected: str) -> None:
    assert told == expected


# -- docs/scale.md -----------------------------------------------------------------------------------------------------


def examples() -> list[tuple[str, Block]]:
    """Each of the page's commands with what stands there as its output."""
    pairs = pairwise(blocks(PAGE))
    return [(commands(a)[0], b) for a, b in pairs if a.text.startswith("mhpc-worker plan") and b.language == "text"]


def test_the_page_shows_what_the_command_prints(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert examples()
    for command, output in examples():
        shown = "\n".join(line.rstrip() for line in output.text.splitlines()).strip()
        assert printed(call, *command.split()[2:]) == shown, output.where


def test_the_table_from_one_line_to_a_million_is_what_the_command_prints(call: Call) -> None:
    rows = re.findall(r"^\| ([\d,]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "100", "10,000", "1,000,000"]
    for lines, rest in rows:
        made = document(call, "--lines", lines.replace(",", ""), "--rate", "5", "--image-kb", "80")["plan"]
        cells = [
            count(made["images_per_second"]), f"{made['shards']:,}", f"{made['workers']:,}", size(made["worker_bytes"]),
            f"{made['redis_servers']:,}", speed(made["network_in"]), size(made["snapshot_store"]),
            size(made["redis_disk"]),
        ]  # fmt: skip
        assert rest.split(" | ") == cells


def test_every_formula_of_the_table_is_on_the_page(call: Call) -> None:
    text = PAGE.read_text()
    cells = [re.split(r" {2,}", line.strip()) for line in printed(call).splitlines()]
    formulas = [row[2] for row in cells if len(row) == 3 and row[0] != "what"]
    assert len(formulas) == 19
    assert [formula for formula in formulas if f"`{formula.removesuffix(', at least 2')}`" not in text] == []


def test_the_page_tells_the_costs_that_are_reckoned_with() -> None:
    text = PAGE.read_text()
    for number in (REDIS.answer_entry, REDIS.learn_entry, REDIS.replica_entry):
        assert f"{number * 1e6:.0f} us" in text
    for number in (REDIS.answer_byte, REDIS.learn_byte, REDIS.replica_byte):
        assert f"{number * 1e9:.2f} us a KB" in text
    for number in (BUNDLED.scoring, BUNDLED.learning):
        assert f"{number:g} images a second" in text
    assert f"{BUNDLED.line_bytes / 2**20:.1f} MiB a line" in text
