"""Docstrings of the installed packages, read from their files; nothing of them is imported or run.

The names of the packages and their usual aliases are blanked, and so are examples, whose import lines and prompts would
give the answer away. How a package lays its docstrings out is left: it is part of the text.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FAMILIES: dict[str, tuple[str, ...]] = {
    "networkx": ("networkx",),
    "pandas": ("pandas",),
    "scipy": ("scipy",),
    "sklearn": ("sklearn",),
    "sympy": ("sympy",),
    "torch": ("torch/nn", "torch/optim", "torch/distributions", "torch/utils", "torch/distributed"),
}
"""Label to folders; all of them come with what Sluice itself needs. Torch has more text than the others together."""
DOCSTRINGS_A_FAMILY = 1200
MIN_CHARACTERS = 80
"""Shorter ones mostly say nothing but the name of what they describe."""
TEN_PARTS = {"fit": range(6), "calibrate": range(6, 8), "held_out": range(8, 10)}
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor"}

# Aliases are words of their own; "torch" also stands in "torchvision" and so on, where it says as much.
_NAMES = re.compile(
    r"\b(scikits?-learn|(py)?torch\w*|sklearn\w*|scipy\w*|sympy\w*|networkx\w*|pandas\w*|numpy\w*|np|pd|nx|sp|plt)\b",
    re.IGNORECASE,
)
_EXAMPLE = re.compile(r"^[ \t]*(>>>|\.\.\.)[^\n]*(\n(?![ \t]*\n)[^\n]*)*", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*(import|from) [\w.]+.*$", re.MULTILINE)


class DocstringError(Exception):
    """There is not enough text; the message says what to do."""


class Docstring(NamedTuple):
    """One docstring.

    Attributes:
        text: with names and examples blanked.
        label: the family.
        file: where it stands, below the folder of all packages.
        name: of what it describes.

    """

    text: str
    label: str
    file: str
    name: str


def load_docstrings(limit: int = DOCSTRINGS_A_FAMILY) -> pd.DataFrame:
    """Docstrings of all families, each text once, in an order that is the same everywhere.

    Args:
        limit: of each family, from files in a random but fixed order.

    Returns:
        The columns of ``Docstring``; a text that stands in several families is left out.

    Raises:
        DocstringError: a family is not installed.

    Cost: about 1 s for 1,000 docstrings.

    """
    found = [row for label, folders in FAMILIES.items() for row in _family(label, folders, limit)]
    frame = pd.DataFrame(found, columns=list(Docstring._fields))
    return frame[~frame["text"].duplicated(keep=False)].reset_index(drop=True)


def part(docstrings: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of ``fit`` (six files of ten), ``calibrate`` or ``held_out`` (two each).

    Whole files go to one part: neighbours in a file often share sentences, and would make the test too easy.
    """
    tenth = docstrings["file"].map(lambda file: zlib.crc32(b"part:" + file.encode()) % 10)
    return docstrings[tenth.isin(TEN_PARTS[name])].reset_index(drop=True)


def blanked(text: str) -> str:
    """A docstring without examples, imports and the names that give it away.

    Example:
        >>> blanked("Mean of a Series in pandas, see np.mean.")
        'Mean of a Series in , see .mean.'

    """
    return _NAMES.sub("", _IMPORT.sub("", _EXAMPLE.sub("", text))).strip()


def _family(label: str, folders: Sequence[str], limit: int) -> list[Docstring]:
    found: dict[str, Docstring] = {}
    for root, file in _files(folders):
        for docstring in _docstrings(label, root, file):
            found.setdefault(docstring.text, docstring)
        if len(found) >= limit:
            return list(found.values())[:limit]
    if not found:
        msg = f"no docstring of {label} was found; install it (`make install` does)"
        raise DocstringError(msg)
    return list(found.values())


def _files(folders: Sequence[str]) -> list[tuple[Path, str]]:
    """Root folder and relative name of all source files, in a fixed random order."""
    files = []
    for folder in folders:
        spec = importlib.util.find_spec(folder.partition("/")[0])
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(spec.submodule_search_locations[0]).parent
        paths = (path.relative_to(root) for path in (root / folder).rglob("*.py"))
        files += [(root, path.as_posix()) for path in paths if not SKIPPED_FOLDERS & set(path.parts)]
    return sorted(files, key=lambda found: (zlib.crc32(found[1].encode()), found[1]))


def _docstrings(label: str, root: Path, file: str) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of bare backslashes in other people's texts
            tree = ast.parse((root / file).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # some packages ship templates that are no Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = blanked(ast.get_docstring(node) or "")
            if len(text) >= MIN_CHARACTERS:
                yield Docstring(text, label, file, getattr(node, "name", "module"))
