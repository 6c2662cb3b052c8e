"""The rooms of the house: each folder imports only folders below it, and model/ nothing of the project's at all.

Counted are all imports: those inside functions and those for type checkers too.
"""

from __future__ import annotations

import ast
import fnmatch
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT

FLOORS = (
    ("common", "model"),
    ("data", "optim", "ranks", "record"),
    ("stability",),
    ("configs",),
    ("training",),
    ("train_lm",),
    ("analysis",),
    ("suite",),
    ("benchmarks", "run_suite"),
)
"""From the ground up. Rooms on one floor do not know each other."""
COMMANDS = {
    "data/prepare.py": "python -m data.prepare reads a recipe, which the rest of data/ knows nothing of",
    "record/export.py": "python -m record.export reads a run's configuration, which names the plug-ins of its model",
}
"""Files that are run and never imported; they may look up."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def sources(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, by dotted name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)} & FLOOR.keys()


def test_every_folder_and_script_with_source_is_a_room():
    folders = {path.parts[len(ROOT.parts)] for path in ROOT.glob("*/**/*.py")}
    names = {folder for folder in folders if not folder.startswith(".")} | {path.stem for path in ROOT.glob("*.py")}
    assert names - {"tests", "runs", "out", "novels", "data_cache"} == FLOOR.keys()


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_imports_only_rooms_below_it(room):
    for path in sources(room):
        name = str(path.relative_to(ROOT))
        wrong = {other for other in rooms_of(path) - {room} if FLOOR[other] >= FLOOR[room] and name not in COMMANDS}
        assert not wrong, f"{name} imports {', '.join(sorted(wrong))}"


def test_the_files_that_look_up_are_imported_by_none():
    modules = {name.removesuffix(".py").replace("/", ".") for name in COMMANDS}
    for path in itertools.chain.from_iterable(map(sources, FLOOR)):
        assert not modules & set(imported(path)), path


def test_model_imports_nothing_of_the_project():
    """A saved checkpoint carries a copy of its files, which must work where the rest of the project is not."""
    for path in sources("model"):
        assert not rooms_of(path) - {"model"}, path


def test_no_files_import_each_other_in_a_circle():
    """Nor in a longer way back to where it began; passed over: imports for type checkers, and what only a command line needs."""
    files = {dotted(path): path for room in FLOOR for path in sources(room)}
    graph = {name: {other for other in at_run_time(path) if other in files} - {name} for name, path in files.items()}
    circle = _circle(graph)
    assert not circle, " -> ".join(circle)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def at_run_time(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in [n for n in ast.walk(tree) if isinstance(n, ast.If)]:
        if "TYPE_CHECKING" in ast.dump(node.test) or "__main__" in ast.dump(node.test):
            node.body = [ast.Pass()]
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if (ROOT / f"{name.replace('.', '/')}.py").exists())
            if any(not (ROOT / f"{name.replace('.', '/')}.py").exists() for name in names):
                yield module


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """A way back to where it began, if there is one."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_the_layout_in_the_readme_names_every_file_of_the_top_two_levels_and_no_other():
    layout = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    named = set(re.findall(r"[\w*]+\.py\b", layout)) - {"test_rooms.py", "golden.py"}
    there = [path for room in FLOOR for path in sources(room) if len(path.relative_to(ROOT).parts) <= 2]
    names = {path.name for path in there} - {"__init__.py"}
    assert {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in named)} == set()
    assert {pattern for pattern in named if not fnmatch.filter(names, pattern)} == set()
    folders = {path.parent.name for room in FLOOR for path in sources(room) if len(path.relative_to(ROOT).parts) == 3}
    assert {folder for folder in folders if f"{folder}/" not in layout} == set()
