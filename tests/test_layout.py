"""The layout of the package: no import circle, small folders, file names that occur once.

What is counted is read from the source; imports for type checkers and those inside functions count.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.test_one_way import ROOT, SOURCES, all_imports, module_name

MODULES = [
    path
    for folder in ("saekit", "app")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
]
LARGEST_FOLDER = 12
# file name -> why it may be in more than one folder
IN_SEVERAL_PLACES = {
    "sources.py": "text/ says where text comes from, activations/ where activations come from",
    "features.py": "a command of cli/ and the page of the viewer that shows the same",
    "circuit.py": "the Circuit of routes/ and the page of the viewer that shows it",
}
# class name -> why it may be defined twice
DEFINED_TWICE: dict[str, str] = {}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other, each sorted."""
    reach = {name: set(others) for name, others in imports.items()}
    changed = True
    while changed:
        changed = False
        for others in reach.values():
            further = set().union(*(reach.get(other, set()) for other in others)) - others
            changed |= bool(further)
            others |= further
    in_circle = [name for name, others in reach.items() if name in others]
    groups = {tuple(sorted(m for m in in_circle if m in reach[n] and n in reach[m]))
              for n in in_circle}  # fmt: skip
    return [list(group) for group in sorted(groups)]


def test_circles_by_hand():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}) == [["a", "b"], ["c", "d"]]


def test_no_import_circle():
    imports = {
        name: {other for other in all_imports(tree) if other in SOURCES and other != name}
        for name, tree in SOURCES.items()
    }
    assert sum(map(len, imports.values())) > 500  # the reading itself works
    assert circles(imports) == []


def test_folders_are_small():
    sizes = Counter(path.parent.relative_to(ROOT) for path in MODULES)
    assert {str(folder): n for folder, n in sizes.items() if n > LARGEST_FOLDER} == {}


def test_file_names_in_several_places_have_a_reason():
    places = Counter(path.name for path in MODULES)
    assert {name for name, n in places.items() if n > 1} == set(IN_SEVERAL_PLACES)
    assert len(IN_SEVERAL_PLACES) <= 6


def test_one_class_has_one_name():
    defined = Counter(
        node.name
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, n in defined.items() if n > 1} == set(DEFINED_TWICE)


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "unit").rglob("test_*.py")), ids=str)
def test_a_unit_test_mirrors_a_module(path: Path):
    """tests/unit/ROOM/test_NAME.py tests saekit/ROOM/NAME.py, or all of saekit/ROOM/NAME/."""
    if path.name in OF_A_ROOM:
        return
    place = path.relative_to(ROOT / "tests" / "unit")
    module = ROOT / "saekit" / place.parent / path.name.removeprefix("test_")
    assert module.is_file() or module.with_suffix("").is_dir(), f"no {module_name(module)}"


# tests of more than one module
OF_A_ROOM: dict[str, str] = {
    "test_imports.py": "what importing the trainer loads",
    "test_training_commands.py": "commands that start, stop and resume a training",
    "test_planted_gpt2.py": "the whole search on a model whose concepts are known",
    "test_bundled_atlas.py": "the atlas of gpt2-mini, against its published figures",
    "test_command.py": "saekit heads, from the command line to its files",
    "test_planted.py": "traces of models whose circuits are known",
    "test_kernels.py": "every kernel against the reference",
    "test_evaluation_peers.py": "evaluation against SAELens'",
    "test_clamped_outputs.py": "what clamping the features of an output concept does",
}
