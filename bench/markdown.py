"""Tables of the pages."""

from __future__ import annotations

from typing import Any


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """Lines of a table.

    Example:
        >>> table(("a", "b"), [(1, "x")])
        ['| a | b |', '|---|---|', '| 1 | x |']

    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
