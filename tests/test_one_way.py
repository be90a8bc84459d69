"""The rules between modules, read from the source.

A module imports only from stages to its left; what is used for viewing loads no torch; only
`cli/` parses arguments and prints; only `app/` imports Streamlit.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = (
    "errors", "files", "documents", "h5", "coordinates", "bundled", "native", "notebook", "version",
    "wording",
)  # fmt: skip
LINE = ("text", "model", "activations", "sae", "features", "concepts", "routes", "report")
# stage -> stages it may import from, beside itself and the base modules
MAY_IMPORT = {stage: set(LINE[:place]) for place, stage in enumerate(LINE)}
MAY_IMPORT["heads"] = {"text", "model"}
MAY_IMPORT["routes"] |= {"heads"}
MAY_IMPORT["report"] |= {"heads"}
MAY_IMPORT["demo"] = {*LINE, "heads"}
MAY_IMPORT["cli"] = {*MAY_IMPORT["demo"], "demo"}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["app"] = {*MAY_IMPORT["demo"]}

# the one module that reads and writes a peer's files, which are pickled tensors (ae.pt)
PEERS_PICKLES = "saekit.sae.interchange.dictionary_learning"
HEAVY = {"torch", "transformers", "sae_lens", "transformer_lens"}
TORCH_FREE = (
    *(f"saekit.{name}" for name in BASE),
    "saekit",
    "saekit.native.*",
    "saekit.text.relational",
    "saekit.text.corpora",
    "saekit.text.sources",
    "saekit.sae.storage.manifest",
    "saekit.features.index.feature_index",
    "saekit.concepts.catalogue",
    "saekit.routes.circuit",
    "saekit.routes.circuit_parts",
    "saekit.routes.trace_document",
    "saekit.routes.graph.form",
    "saekit.routes.intervention.outcomes",
    "saekit.routes.variants.stability",
    "saekit.routes.variants.templates",
    "saekit.heads",
    "saekit.heads.classes",
    "saekit.heads.document",
    "saekit.heads.document_parts",
    "saekit.heads.grids",
    "saekit.heads.relations",
    "saekit.heads.scores",
    "saekit.report",
    "saekit.report.*",
    "saekit.cli",
    "saekit.cli.*",
    "app.*",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("saekit", "app")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def stage_of(module: str) -> str:
    if module.split(".")[0] == "app":
        return "app"
    return (module.split(".") + [""])[1]


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        # `from saekit.text import relational` names a module, `... import InputError` does not
        return [
            full if (full := f"{node.module}.{alias.name}") in SOURCES else str(node.module)
            for alias in node.names
        ]
    return []


def all_imports(tree: ast.AST) -> list[str]:
    """Every import, also those inside functions."""
    return [name for node in ast.walk(tree) for name in _imported_names(node)]


def imports_at_load(tree: ast.AST) -> list[str]:
    """The imports that run when the module is loaded: not in functions, not for type checkers."""
    names: list[str] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        names += _imported_names(node) + imports_at_load(node)
    return names


def loads(module: str) -> set[str]:
    """Everything that loading a module loads, read from the source."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in SOURCES:
            waiting += imports_at_load(SOURCES[name])
            if "." in name:
                waiting.append(name.rpartition(".")[0])
    return seen


def forbidden_imports(module: str, imports: list[str]) -> list[str]:
    """The imports of a module that point to its own right."""
    stage = stage_of(module)
    if stage in BASE:
        allowed = set(BASE)
    elif stage == "":  # the package itself: names for type checkers only
        return []
    else:
        assert stage in MAY_IMPORT, f"{module}: say in MAY_IMPORT where the stage {stage} stands"
        allowed = MAY_IMPORT[stage] | {stage, *BASE}
    own = [name for name in imports if name.split(".")[0] in ("saekit", "app")]
    return [name for name in own if stage_of(name) not in allowed | {""}]


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_from_its_left(module):
    assert forbidden_imports(module, all_imports(SOURCES[module])) == []


def test_the_rule_itself():
    assert forbidden_imports("saekit.text.packing", ["saekit.errors", "numpy"]) == []
    assert forbidden_imports("saekit.text.packing", ["saekit.model.loading"]) != []
    assert forbidden_imports("saekit.model.loading", ["saekit.text.relational"]) == []
    assert forbidden_imports("saekit.files", ["saekit.text.corpora"]) != []
    assert forbidden_imports("saekit.routes.circuit", ["saekit.report.circuit.svg"]) != []
    assert forbidden_imports("saekit.report.circuit.svg", ["app.state"]) != []
    assert forbidden_imports("app.pages.circuit", ["saekit.report.circuit.svg"]) == []
    assert "torch" in loads("saekit.model.loading")


TORCH_FREE_MODULES = [
    name for name in SOURCES if any(fnmatch(name, pattern) for pattern in TORCH_FREE)
]


@pytest.mark.parametrize("module", TORCH_FREE_MODULES)
def test_viewing_modules_reach_no_torch_in_the_source(module):
    heavy = {name for name in loads(module) if name.split(".")[0] in HEAVY}
    assert heavy == set()


def test_viewing_modules_load_no_torch_when_imported():
    modules = [name for name in TORCH_FREE_MODULES if not name.startswith("app")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_import_saekit_is_cheap():
    """Less than 0.3 s of processor time (wall time would measure how busy the machine is)."""
    code = (
        "import sys, time; start = time.process_time(); import saekit\n"
        "print(len([m for m in sys.modules if m.startswith('saekit')]))\n"
        "print(time.process_time() - start)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules, seconds = result.stdout.split()
    assert int(modules) == 1  # only the package itself
    assert float(seconds) < 0.3


@pytest.mark.parametrize("module", SOURCES)
def test_who_parses_arguments_prints_and_imports_streamlit(module):
    tree = SOURCES[module]
    roots = {name.split(".")[0] for name in all_imports(tree)}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    pickles = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save")
    ]
    if module == PEERS_PICKLES:  # tensors only, so that a file cannot run code
        unsafe = [c for c in pickles if "load" in ast.unparse(c.func) and not _weights_only(c)]
        assert unsafe == []
        pickles = []
    if stage_of(module) != "cli":
        assert "argparse" not in roots
        assert prints == []
    if not module.startswith("app"):
        assert "streamlit" not in roots
    assert not roots & {"pickle", "joblib", "dill"}
    assert pickles == []


def _weights_only(call: ast.Call) -> bool:
    return any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)


def test_lazy_names_of_the_package_exist():
    """Each public name is where `saekit.__init__` says, so a typo shows before it is used."""
    import saekit

    for name, home in saekit._HOME.items():
        assert home in SOURCES, f"saekit.{name} should be in {home}"
        defined = {
            target.name
            for target in ast.walk(SOURCES[home])
            if isinstance(target, ast.FunctionDef | ast.ClassDef)
        } | {
            target.id
            for target in ast.walk(SOURCES[home])
            if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
        }
        assert name in defined
    with pytest.raises(AttributeError, match="nothing_like_this"):
        saekit.nothing_like_this  # noqa: B018
