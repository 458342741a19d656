"""Writes the reference pages from the code: ``python -m docs.write_reference`` (``make docs``).

A test compares the pages with what the code says now, so that neither can be changed alone.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from app.metrics import Metrics
from app.metrics_families import HELP, PREFIX
from app.settings import PLAIN_VARIABLES, BudgetSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
RECORDING = {"count": ("counter", "_total"), "set_gauge": ("gauge", ""), "observe_us": ("histogram", "_seconds")}
"""Methods of ``app.metrics.Metrics`` that make a family, with its type and the end of its name."""
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
UNITS = {"_ms": "ms", "_s": "s", "_bytes": "bytes", "_rows": "rows", "_records": "records"}
STANDARD = "`process_*` and `python_*` are those of the Prometheus client."


def settings_page() -> str:
    """Markdown with one table row a setting, in the order of the code."""
    lines = [
        "# Settings",
        "",
        "Written by `make docs` from `app/settings.py`; edit there.",
        "",
        "Read from `sluice.toml` (`[kafka]`, `partitions = 12`), then from variables, then from arguments; later",
        "ones win. An unknown key is an error that names the nearest one.",
        "",
    ]
    own = [(name, field) for name, field in Settings.model_fields.items() if not _group(field)]
    lines += ["## Top level", "", *_table(own, "")]
    for name, field in Settings.model_fields.items():
        group = _group(field)
        if group:
            lines += [f"## {name}", "", group.__doc__ or "", "", *_table(list(group.model_fields.items()), name)]
    return "\n".join(lines)


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(fields: list[tuple[str, FieldInfo]], group: str) -> list[str]:
    plain = {path: variable for variable, path in PLAIN_VARIABLES.items()}
    rows = ["| setting | variable | default | unit | range | meaning |", "| --- | --- | --- | --- | --- | --- |"]
    for name, field in fields:
        variables = [f"`SLUICE_{group}__{name}`".upper() if group else f"`SLUICE_{name}`".upper()]
        variables += [f"`{plain[group, name]}`"] if (group, name) in plain else []
        unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
        default = "none" if field.default is None else f"`{field.default}`"
        cells = [f"`{name}`", ", ".join(variables), default, unit, _range(field), field.description or ""]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


def _range(field: FieldInfo) -> str:
    parts = []
    for bound in field.metadata:
        parts += [f"{sign} {getattr(bound, key):g}" for key, sign in BOUNDS.items() if hasattr(bound, key)]
        pattern = getattr(bound, "pattern", None)
        parts += [f"`{pattern}`"] if pattern else []
    return ", ".join(parts)


def metrics_page() -> str:
    """Markdown with one table row a family of ``/metrics``, by name."""
    rows = sorted({**_fixed_families(), **_recorded_families()}.items())
    return "\n".join(
        [
            "# Metrics",
            "",
            f"Written by `make docs` from the code. Every worker serves these at `/metrics`. {STANDARD}",
            "",
            "| family | type | labels | meaning |",
            "| --- | --- | --- | --- |",
            *(f"| `{name}` | {kind} | {labels} | {text} |" for name, (kind, labels, text) in rows),
            "",
        ]
    )


def _fixed_families() -> dict[str, tuple[str, str, str]]:
    """Families that every scoring worker has from its start."""
    metrics = Metrics(BudgetSettings(), now_s=lambda: 0.0)
    families = {}
    for family in metrics.collector().collect():
        labels = getattr(family, "_labelnames", ())  # also known while there is no sample yet
        name = family.name + ("_total" if family.type == "counter" else "")
        families[name] = (family.type, ", ".join(labels), family.documentation)
    return families


def _recorded_families() -> dict[str, tuple[str, str, str]]:
    """Families that the code makes by recording under a name."""
    families: dict[str, tuple[str, str, str]] = {}
    for method, name, labels in recorded():
        kind, end = RECORDING[method]
        known = families.get(f"{PREFIX}_{name}{end}", ("", "", ""))[1].split(", ")
        together = ", ".join(sorted({*labels, *known} - {""}))
        families[f"{PREFIX}_{name}{end}"] = (kind, together, HELP.get(name, ""))
    return families


def recorded() -> Iterator[tuple[str, str, list[str]]]:
    """Each call ``….metrics.count("name", label=…)`` in the source, as (method, name, labels)."""
    for room in ("app", "agents", "monitors"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                receiver = ast.unparse(node.func.value)
                if node.func.attr not in RECORDING or not receiver.endswith("metrics") or not node.args:
                    continue
                labels = [word.arg for word in node.keywords if word.arg and word.arg != "amount"]
                for name in _constants(node.args[0]):
                    yield node.func.attr, name, labels


def _constants(expression: ast.expr) -> list[str]:
    """The texts that an argument can be: a literal, or either side of a conditional."""
    if isinstance(expression, ast.IfExp):
        return _constants(expression.body) + _constants(expression.orelse)
    return [expression.value] if isinstance(expression, ast.Constant) and isinstance(expression.value, str) else []


def main() -> None:
    """Write both pages beside this file."""
    (ROOT / "docs/settings.md").write_text(settings_page(), encoding="utf-8")
    (ROOT / "docs/metrics.md").write_text(metrics_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
