"""Imports run one way: the order of the modules is checked on their source, inner imports included."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_TORCH = [
    "worker.errors",
    "worker.settings",
    "worker.message",
    "worker.producer",
    "worker.views",
    "worker.cli.app",
]
WITHOUT_TORCH += ["worker.console.server"]

# What the parts of mhpc may import of it; training and evaluation, above core, may import all of these.
MHPC = {
    "linalg": set[str](),
    "mahalanobis": {"linalg"},
    "decomposition": {"linalg", "mahalanobis"},
    "farthest": {"linalg"},
    "sampler": {"linalg", "farthest"},
    "cluster": {"linalg", "sampler"},
    "core": {"linalg", "mahalanobis", "decomposition", "sampler", "cluster", "core", "weights"},
    "weights": {"weights"},
}
# Of the worker's parts that have a place in the order none may import one of a higher rank.
WORKER = {"errors": 0, "settings": 0, "runtime": 0, "message": 1, "pictures": 1, "streams": 2, "snapshots": 2}
WORKER |= {"metrics": 2, "storage": 2, "line": 3, "engine": 3, "keeping": 4, "answering": 5, "learning": 6, "daemon": 7}
WORKER |= {"ranks": 8, "cli": 9}


def modules() -> dict[str, Path]:
    paths = [path for package in ("mhpc", "worker") for path in (ROOT / package).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imported(path: Path, known: set[str]) -> set[str]:
    """The project's modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import: the project writes them in full"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else module for name in inner}
    return {name for name in names if name.split(".")[0] in ("mhpc", "worker")}


GRAPH = {name: imported(path, set(modules())) for name, path in modules().items()}


def part(module: str) -> str:
    """`mhpc.core.learner` belongs to `core`, `worker.line` to `line`."""
    return [*module.split("."), ""][1]


def test_every_import_within_the_project_is_of_a_module_that_exists() -> None:
    assert GRAPH["mhpc.cluster"] == {"mhpc.linalg", "mhpc.sampler"}
    assert {name for names in GRAPH.values() for name in names} <= GRAPH.keys()


def test_mhpc_never_imports_worker() -> None:
    assert [(m, name) for m, names in GRAPH.items() for name in names if m[:4] == "mhpc" and name[:4] != "mhpc"] == []


def test_the_parts_of_mhpc_import_only_what_lies_below_them() -> None:
    wrong = [
        (module, name)
        for module, names in GRAPH.items()
        if module.startswith("mhpc.") and part(module) in MHPC
        for name in names
        if part(name) not in MHPC[part(module)]
    ]
    assert wrong == []


def test_the_parts_of_the_worker_import_none_of_a_higher_rank() -> None:
    wrong = [
        (module, name)
        for module, names in GRAPH.items()
        if module.startswith("worker.") and part(module) in WORKER
        for name in names
        if name.startswith("worker.") and WORKER.get(part(name), 0) > WORKER[part(module)]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(GRAPH)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_load_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
