"""Folders import what CONTRIBUTING.md lets them, and modules do not import each other in circles."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "kdnas_hf"
FREE = ("version",)  # of the package itself: every folder may import it


@dataclass(frozen=True)
class Import:
    """An import of a module of ours, wherever in a file it stands.

    Attributes:
        line: Where.
        written: The module that the statement names.
        module: The one that defines what is imported.
    """

    line: int
    written: str
    module: str


class Modules:
    """The modules of a package and what they import, read from their source.

    ``from package import name`` counts as an import of the module that defines the name, through all the
    ``__init__.py`` that hand it on: importing a package is no reason for a circle as long as the module itself is none.

    Args:
        folder: The package's folder.
    """

    def __init__(self, folder):
        self.root = folder.name
        self.paths = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            self.paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.paths.items()}

    def is_package(self, name):
        return self.paths[name].name == "__init__.py"

    def imports(self, name):
        found = []
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                written = self._absolute(name, node)
                found += [(node.lineno, written, self._defining(written, alias.name)) for alias in node.names]
        return [Import(*one) for one in found if one[2] in self.paths]

    def _absolute(self, name, node):
        if not node.level:
            return node.module
        parts = name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package(name)]
        return ".".join([*parts, node.module] if node.module else parts)

    def _defining(self, module, name):
        """The module that defines a name that is imported from a module."""
        if f"{module}.{name}" in self.paths:
            return f"{module}.{name}"
        if module in self.paths and self.is_package(module):
            for node in ast.walk(self.trees[module]):
                if isinstance(node, ast.ImportFrom):
                    for alias in node.names:
                        handed_on = self._absolute(module, node)
                        if (alias.asname or alias.name) == name and (handed_on, alias.name) != (module, name):
                            return self._defining(handed_on, alias.name)
        return module

    def graph(self):
        return {name: {one.module for one in self.imports(name)} - {name} for name in self.paths}


def find_circle(graph):
    """A shortest circle of a graph, from its first node by name to that node again; empty if there is none."""
    circles = []
    for start in sorted(graph):
        before, queue = {}, [start]
        for node in queue:
            for following in sorted(graph[node]):
                if following not in before:
                    before[following] = node
                    queue.append(following)
        if start in before:
            circle = [start, before[start]]
            while circle[-1] != start:
                circle.append(before[circle[-1]])
            circles.append(circle[::-1])
    return min(circles, key=len, default=[])


def allowed_imports(text):
    """By folder what it may import, in the order of the table in CONTRIBUTING.md."""
    section = text.split("## Where things are")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", section, flags=re.MULTILINE)
    return {folder: re.findall(r"`([\w.]+)`", cell) for folder, cell in rows}


def forbidden_imports(modules, allowed):
    """What folders import although their rows do not say so, one line each."""
    found = []
    for name, path in modules.paths.items():
        folder = name.split(".")[1] if "." in name else ""
        if folder not in allowed:
            continue  # the package itself hands on the names of all folders
        may = [folder, *FREE, *allowed[folder]]
        for one in modules.imports(name):
            written, module = (
                target.removeprefix(modules.root).removeprefix(".") for target in (one.written, one.module)
            )
            folders = {entry.split(".")[0] for entry in may} | {""}
            if written.split(".")[0] in folders and any(f"{module}.".startswith(f"{entry}.") for entry in may):
                continue
            row = ", ".join(allowed[folder]) or "nothing of ours"
            found.append(f"{path}:{one.line} imports {module or modules.root}; {folder}/ may import {row}")
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def modules():
    return Modules(ROOT / "src" / PACKAGE)


@pytest.fixture(scope="module")
def allowed():
    return allowed_imports((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_the_table_lists_every_folder(modules, allowed):
    folders = {name.split(".")[1] for name in modules.paths if modules.is_package(name) and name != PACKAGE}
    assert set(allowed) == folders


def test_the_table_lets_folders_import_only_what_stands_above_them(allowed):
    above = []
    for folder, entries in allowed.items():
        assert {entry.split(".")[0] for entry in entries} <= set(above), folder
        above.append(folder)


def test_each_folder_imports_only_what_its_row_allows(modules, allowed):
    assert not (found := forbidden_imports(modules, allowed)), "\n".join(found)


def test_modules_do_not_import_each_other_in_a_circle(modules):
    circle = find_circle(modules.graph())
    assert not circle, " imports ".join(circle)


# ---- that the tests above can fail ----


@pytest.fixture
def example(tmp_path):
    """A package whose modules are given as text."""

    def write(**files):
        folder = tmp_path / "example"
        for name, text in {"__init__": "from .upper import thing", **files}.items():
            path = folder / f"{name.replace('__init__', '@').replace('__', '/').replace('@', '__init__')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Modules(folder)

    return write


HIDDEN_IMPORTS = {
    "plain": "from ..upper.b import thing",
    "in a function": "def f():\n    from ..upper import b",
    "for types": "if TYPE_CHECKING:\n    from ..upper import thing",
    "absolute": "import example.upper.b",
    "of the package": "from .. import upper",
    "through the package": "from example import thing",
    "renamed": "from ..upper import thing as other",
}


@pytest.mark.parametrize("text", HIDDEN_IMPORTS.values(), ids=HIDDEN_IMPORTS)
def test_a_forbidden_import_is_found_wherever_it_stands(example, text):
    modules = example(
        upper____init__="from .b import thing\nfrom ..lower.a import a",
        upper__b="thing = 1",
        lower____init__="",
        lower__a=text,
    )
    assert forbidden_imports(modules, {"lower": ["data"], "upper": ["lower"]})
    assert not forbidden_imports(modules, {"lower": ["upper"], "upper": ["lower"]})


def test_a_row_may_allow_a_single_module(example):
    modules = example(
        lower____init__="from .a import a\nfrom .b import b",
        lower__a="a = 1",
        lower__b="b = 1",
        upper____init__="thing = 1",
        upper__c="from ..lower import a",
        upper__d="from ..lower.b import b",
    )
    (found,) = forbidden_imports(modules, {"lower": [], "upper": ["lower.a"]})
    assert "d.py:1 imports lower.b; upper/ may import lower.a" in found


@pytest.mark.parametrize("text", ["from .b import b", "def f():\n    from . import b", "from . import thing"])
def test_a_circle_is_named(example, text):
    modules = example(
        upper____init__="from .a import a\nfrom .b import b as thing",
        upper__a=text,
        upper__b="from .c import c\nb = 1",
        upper__c="if TYPE_CHECKING:\n    from .a import a",
        upper__d="from .a import a",
    )
    assert find_circle(modules.graph()) == [f"example.upper.{name}" for name in "abca"]


def test_a_package_that_hands_on_names_is_no_circle(example):
    modules = example(
        upper____init__="from .a import a\nfrom .b import b\nfrom .inner import thing",
        upper__a="from . import b",
        upper__b="from . import thing",
        upper__inner____init__="from .c import thing",
        upper__inner__c="thing = 1",
    )
    assert find_circle(modules.graph()) == []
