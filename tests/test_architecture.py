"""The architecture as a table: who may import whom, which modules are pure, how long a file may be.

Changing the architecture means changing these tables.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
ROOMS = {
    "schemas": {"schemas"},
    "app": {"app", "schemas"},
    "monitors": {"monitors", "schemas"},
    "agents": {"agents", "app", "monitors", "schemas"},
}
"""Imports point inward."""
COMPOSITION = {"app.main", "app.cli", "app.views", "app.model_control_commands", "app.score_command"}
"""The only modules of ``app`` that see everything."""
PURE = {
    *("schemas.wire", "schemas.columns", "schemas.columnar", "schemas.records", "schemas.generate"),
    *("app.ledger", "app.batcher", "app.budget", "app.postprocess", "app.assignment", "app.rollout"),
    *("app.overload", "app.models.lifecycle", "app.models.live_table", "app.models.policy", "app.models.residency"),
    *("app.models.control", "app.models.control_progress", "app.calibration", "app.threshold"),
    *(
        "app.dead_letters",
        "app.partial_record",
        "app.poison_circuit",
        "app.recent",
        "app.dead_letter_text",
        "app.transactions",
    ),
    *("app.poison_circuit", "app.recent"),
    *("app.last_known", "app.breaker", "app.feature_ages"),
    *("monitors.join", "monitors.windows", "monitors.drift", "monitors.quality", "monitors.calibration"),
    *("monitors.evidence", "monitors.attribution", "monitors.alerts"),
}
"""Same input, same output: testable without a broker, a clock or a device."""
IMPURE = {"faust", "aiokafka", "redis", "torch", "asyncio", "time", "random", "os"}
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc"}
FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}
WRITTEN = [
    *(
        path
        for room in (*ROOMS, "examples", "bench", "chaos", "docs", "tests")
        for path in sorted((ROOT / room).rglob("*.py"))
    ),
]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(node: ast.AST, *, at_run_time: bool = False) -> Iterator[str]:
    """Names that a module imports, anywhere in it; ``at_run_time`` leaves out what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if at_run_time and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import of {child.module}: write the full name"
            assert child.module is not None
            yield from (
                f"{child.module}.{alias.name}" if f"{child.module}.{alias.name}" in MODULES else child.module
                for alias in child.names
            )
        else:
            yield from _imports(child, at_run_time=at_run_time)


def _reached(module: str) -> set[str]:
    """All that importing a module imports of ours, packages included, and every name these import in turn."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            waiting += _imports(_tree(MODULES[name]), at_run_time=True)
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return seen


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_inward(module: str) -> None:
    """A module imports only from the rooms that its own room may see."""
    room = module.partition(".")[0]
    allowed = set(ROOMS) if module in COMPOSITION else ROOMS[room]
    named = {name.partition(".")[0] for name in _imports(_tree(MODULES[module]))}
    outward = named & {*ROOMS, "examples", "bench", "chaos", "tests", "docs"} - allowed
    assert not outward, f"{module} imports from {sorted(outward)}; {room} may see only {sorted(allowed)}"


@pytest.mark.parametrize("module", sorted(PURE & set(MODULES)))
def test_pure_modules_stay_pure(module: str) -> None:
    """A pure module reaches no clock, randomness, environment, device or network, not even through others."""
    impure = {name for name in _reached(module) if name.partition(".")[0] in IMPURE}
    assert not impure, f"{module} reaches {sorted(impure)}; hand the value in from the edge"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    """One concept a file, one thought a function."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES_MAX, f"{lines} lines in {path.name}; one concept a file"
    functions = [n for n in ast.walk(_tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno}
    long = {name: count for name, count in long.items() if count > FUNCTION_LINES_MAX}
    assert not long, f"functions of more than {FUNCTION_LINES_MAX} lines: {long}"
    assert path.stem not in VAGUE, f"{path.name} says nothing about what is in it"
