"""The documents tell the truth: commands are run or explained, settings and metrics are all there.

A command that README.md shows stands in ``COMMANDS`` with the proof that it works, or with the reason why no test
runs it here. A new command in README.md without an entry fails the test.
"""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.metrics_families import HELP
from docs.write_reference import metrics_page, recorded, settings_page

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<language>[a-z]*)[^\n]*\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = {"sh", "bash", "shell", "console"}


@dataclass(frozen=True)
class RunBy:
    """A test runs it: ``file::function``, relative to the top."""

    test: str


@dataclass(frozen=True)
class InCi:
    """The check of a clean checkout runs it."""


@dataclass(frozen=True)
class Explained:
    """No test runs it; the reason says why, and what stands in for it."""

    reason: str


HOW_TO = "tests/integration/test_readme.py::test_the_how_to_works_word_for_word"
OPERATION = "tests/integration/test_readme.py::test_models_in_operation_work_word_for_word"
DEAD_LETTERS = "tests/integration/test_dlq.py::test_poison_is_listed_shown_and_sent_again"

COMMANDS: dict[str, RunBy | InCi | Explained] = {
    "make help": RunBy("tests/test_packaging.py::test_make_help_names_every_target"),
    "make install": InCi(),
    "make check": InCi(),
    "make test": InCi(),
    "make demo": RunBy("tests/integration/test_flights.py::test_every_flight_is_answered_once_and_nothing_is_lost"),
    "make bench": Explained("takes minutes and wants an idle machine"),
    "make chaos": Explained("takes hours; tests/chaos runs its short form"),
    "make simulate": Explained("minutes of the seeds that tests/simulation/test_delivery.py runs thousands of"),
    "make lock": Explained("asks the registry for newer versions; tests check what it wrote"),
    "make docs": Explained("the tests here compare its pages with the code"),
    "make clean": Explained("removes the environment that the tests run in"),
    "make format": Explained("make check verifies the format"),
    "make up": Explained("hands over to `sluice up --detach`, which the tests of app/embedded run"),
    "make down": Explained("hands over to `sluice down`, which the tests of app/embedded run"),
    "docker compose": Explained("needs a container engine; tests/test_packaging.py checks what can be without one"),
    "docker build": Explained("needs a container engine; tests/test_packaging.py checks what can be without one"),
    ". .venv/bin/activate": RunBy(HOW_TO),
    "python pack.py": RunBy(HOW_TO),
    "sluice up --detach": RunBy(HOW_TO),
    "eval $(sluice env)": RunBy(HOW_TO),
    "sluice topics": RunBy(HOW_TO),
    "sluice worker scoring": RunBy(HOW_TO),
    "echo": RunBy(HOW_TO),
    "sluice schema encode": RunBy(HOW_TO),
    **{f"sluice model {name}": RunBy(OPERATION) for name in ("list", "show", "verify", "status", "load", "label")},
    "sluice score": RunBy(OPERATION),
    "sluice dlq list": RunBy(DEAD_LETTERS),
    "sluice dlq show": RunBy(DEAD_LETTERS),
    "sluice dlq replay": RunBy(DEAD_LETTERS),
    "kcat": RunBy(HOW_TO),
    "sluice down": RunBy(HOW_TO),
    "git clone": Explained("a continuous integration run starts from a clone"),
    "cd": Explained("changes the folder for the next line"),
}
"""The first words of a command, the longest match counts, variables in front and arguments behind are free."""


def _commands(markdown: str) -> list[str]:
    """Commands of all shell blocks: every line of ``sh``, the lines after ``$`` of ``console``.

    Example:
        >>> _commands(chr(10).join(["```console", "$ make test", "12 passed", "```"]))
        ['make test']

    """
    commands = []
    for block in FENCE.finditer(markdown):
        if block["language"] not in SHELLS:
            continue
        for line in re.sub(r"\\\n\s*", "", block["body"]).splitlines():
            if block["language"] == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                commands.append(" ".join(words))
    return commands


def _entry(command: str) -> RunBy | InCi | Explained | None:
    words = command.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    for length in range(len(words), 0, -1):
        found = COMMANDS.get(" ".join(words[:length]))
        if found:
            return found
    return None


def test_every_command_of_the_readme_is_run_or_explained() -> None:
    """No command stands in README.md that nobody has looked after."""
    commands = _commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert commands, "README.md shows no command; a stranger needs at least `make demo`"
    unknown = [command for command in commands if _entry(command) is None]
    assert not unknown, f"add to COMMANDS, with a test or a reason: {unknown}"


def test_commands_are_taken_from_shell_blocks_alone() -> None:
    """Output of a console block, comments, and blocks of other languages are no commands."""
    python = "```python\nmake = 1\n```\n"
    console = "```console\n$ make \\\n  test\n3 passed\n```\n"
    shell = "```sh\n# first\nMONTHS=10 make demo # long\n```\n"
    assert _commands(python + console + shell) == ["make test", "MONTHS=10 make demo"]
    assert _entry("MONTHS=10 make demo") == COMMANDS["make demo"]
    assert _entry("rm -rf /") is None


@pytest.mark.parametrize(
    "command", sorted(name for name, entry in COMMANDS.items() if not isinstance(entry, Explained))
)
def test_proofs_exist(command: str) -> None:
    """The test that a command's entry names is there, and what is said to run in CI does."""
    entry = COMMANDS[command]
    if isinstance(entry, RunBy):
        assert _is_there(entry.test)
    else:
        assert re.search(rf"\b{command}\b", (ROOT / ".ci/run").read_text())


def test_the_checklist_of_model_servers_is_proven() -> None:
    """Each row of docs/model-serving.md names a test, and the test is there."""
    rows = re.findall(
        r"^\| (?!what |---)(.*) \| .* \| (.*) \|$", (ROOT / "docs/model-serving.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 20
    for what, proof in rows:
        tests = re.findall(r"`(tests/[\w/.]+::\w+)`", proof)
        assert tests, what
        assert all(map(_is_there, tests)), f"{what}: {proof}"


def _is_there(test: str) -> bool:
    file, name = test.split("::")
    return name in {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(n, "name")}


@pytest.mark.parametrize(("page", "written"), [("settings.md", settings_page), ("metrics.md", metrics_page)])
def test_reference_pages_are_up_to_date(page: str, written: object) -> None:
    """The reference says what the code says; after a change of either, `make docs` writes it anew."""
    assert callable(written)
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == written(), f"docs/{page} is old; run make docs"


def test_every_recorded_metric_has_a_meaning() -> None:
    """A name that the code counts under has a sentence in ``HELP`` of app/metrics_families.py."""
    nameless = sorted({name for _, name, _ in recorded()} - set(HELP))
    assert not nameless, f"say in HELP what these count: {nameless}"


def test_links_of_the_documents_lead_somewhere() -> None:
    """A relative link in a document names a file or folder of this project."""
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_changelog_keeps_its_form() -> None:
    """The changelog has an Unreleased section first, and only the headings of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
