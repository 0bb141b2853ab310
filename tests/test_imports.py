"""The package's folders import one way, in the order data flows, and few files reach Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import raygenesis

PACKAGE = Path(raygenesis.__file__).parent

# From the lowest to the highest: a file imports from its own room and those before it.
ORDER = (
    "text", "workspace", "settings", "cluster", "archive", "patterns", "networks", "training", "discovery",
    "pretraining", "transfer", "sweeps", "studies", "planning", "report", "demo",
)  # fmt: skip

IMPORT_RAY = {
    "archive/intake/parallel.py", "archive/source.py", "cluster/capacity.py", "cluster/fan_out.py", "cluster/gauges.py",
    "cluster/head.py", "cluster/joining.py", "cluster/streams.py", "discovery/embed.py", "discovery/encoders.py",
    "sweeps/trial.py", "sweeps/trials.py", "training/fit.py", "training/trackers.py",
    "transfer/stored_cases.py",
}  # fmt: skip

# What reads results, and readers of scans, reach no Ray.
WITHOUT_RAY = (
    "report.report", "archive.inspection", "networks.weights.loading", "transfer.statistics", "archive.formats.readers",
    "discovery.retrieval",
)  # fmt: skip


def modules_of(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it, and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files() -> dict[str, set[str]]:
    """Of every file of the package what it imports."""
    return {str(path.relative_to(PACKAGE)): set(modules_of(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def test_a_room_imports_from_those_before_it_alone() -> None:
    names = set()
    backwards = []
    for path, modules in files().items():
        room, _, rest = path.partition("/")
        if not rest:
            continue  # the root's files: the command line, the pipeline, and what Python asks for
        names.add(room)
        for module in sorted(modules):
            package, _, inner = module.partition(".")
            other = inner.partition(".")[0]
            allowed = {*ORDER[: ORDER.index(room) + 1], "errors", "_version"}
            if package == "raygenesis" and other not in allowed:
                backwards.append((path, module))
    assert backwards == []
    assert names == set(ORDER)


def test_ray_is_imported_by_the_files_that_call_it_alone() -> None:
    found = {path for path, modules in files().items() if any(name.split(".")[0] == "ray" for name in modules)}
    assert found == IMPORT_RAY


def test_what_reads_results_does_not_reach_ray() -> None:
    code = "; ".join(
        f"import raygenesis.{module}; assert 'ray' not in sys.modules, '{module} imports ray'" for module in WITHOUT_RAY
    )
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
