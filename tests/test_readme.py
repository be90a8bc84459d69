"""The commands and programs in README and docs/ run; links lead somewhere; the notebook runs.

A command runs as it stands there if that takes less than 20 s on two cores, else with fewer tokens,
else it is only parsed.  The lists below say which, and why.
"""

import ast
import contextlib
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from saekit.cli import build_parser, main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
WORDS = 1100

# what is changed so that it takes less than 20 s (fewer tokens; heads without their measured
# classes, which read 80 stories): the arguments that are replaced
FEWER = {
    "saekit evaluate --tokens 20000": {"20000": "1000"},
    **{
        f"saekit heads{more}": {"heads": "heads --no-classes"}
        for more in (
            "",
            " gpt2-mini --relation opposites --pairs --json",
            " gpt2-mini --salient L9-H8",
        )
    },
    "saekit means gpt2-mini --out out/means.safetensors": {"--out": "--tokens 5000 --out"},
}
# what is only parsed
PARSED = {
    "saekit fetch smollm2": "needs a network",
    "saekit trace --model smollm2 ": "needs a model that was fetched",
    "saekit train gpt2 ": "needs a GPU, a network and hours",
    "saekit index out/gpt2 ": "needs what that training writes, and a GPU",
    "saekit concepts out/gpt2 ": "needs what that training writes",
    "saekit view out/gpt2": "a server that does not end",
    "saekit import gpt2-small-res-jb": "needs a network",
    "saekit export out/gpt2 ": "needs what that training writes",
    "saekit heads gpt2-mini --dynamic --causal": "takes minutes: stories with heads removed",
    "saekit heads gpt2 --relation my_pairs.csv": "needs a network",
    "saekit names --tokens 200000": "takes minutes: all 61,440 features are scored",
    "saekit concepts --find": "takes minutes: all layers and their nulls are matched",
}


def commands_of(page: Path) -> list[str]:
    """Indented lines and lines of `sh` blocks that begin with saekit, comments left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    lines = [line.strip() for line in text.splitlines() if line.startswith("    saekit ")]
    lines += [line for line in blocks.splitlines() if line.startswith("saekit ")]
    return [" ".join(shlex.quote(part) for part in shlex.split(line, comments=True))
            for line in lines]  # fmt: skip


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))
ONLY_PARSED = [c for c in COMMANDS if any(c.startswith(start) for start in PARSED)]
TO_RUN = [c for c in COMMANDS if c not in ONLY_PARSED]


def test_the_lists_are_of_commands_that_stand_there():
    assert len(COMMANDS) > 25
    assert {"trace", "concepts", "query", "evaluate", "report", "heads", "means"} == {
        shlex.split(command)[1] for command in TO_RUN
    }
    for start in PARSED:
        assert any(command.startswith(start) for command in COMMANDS), start
    assert set(FEWER) <= set(TO_RUN)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for outputs; what is made for one command is there for the next."""
    folder = tmp_path_factory.mktemp("readme")
    (template,) = re.findall(
        r"```toml\n(.*?)```",
        (ROOT / "docs" / "interventions-and-variants.md").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    (folder / "words.toml").write_text(template, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", TO_RUN)
def test_a_command_runs(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)  # what is shipped is found from anywhere; outputs go here
    parts = shlex.split(command)[1:]
    for old, new in FEWER.get(command, {}).items():
        at = parts.index(old)
        parts[at : at + 1] = new.split()
    assert main(parts) == 0
    printed = capsys.readouterr().out
    assert len(printed) > 40
    if "--json" in parts:
        json.loads(printed)
    for flag in ("--out", "--graph"):
        if flag in parts:
            made = Path(parts[parts.index(flag) + 1])
            assert made.stat().st_size > 0 if made.is_file() else any(made.iterdir()), made


@pytest.mark.parametrize("command", ONLY_PARSED)
def test_a_command_that_cannot_run_here_is_understood(command):
    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.slow
def test_the_shown_interventions_are_what_is_printed(capsys):
    """Up to the last digit that another processor may round differently."""
    page = (ROOT / "docs" / "interventions-and-variants.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```\n(Change .*?)```", page, flags=re.DOTALL)
    (command,) = [c for c in TO_RUN if "--swap" in c]
    assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    words = [line.split("(")[0].split(":")[0] for line in shown.splitlines() if line.strip()]
    for start in words:
        assert start in printed, start
    for token in ("'cold' 99.6%", "'small' 99% -> 2.1%"):
        assert token in shown and token in printed


@pytest.mark.slow
def test_the_program_runs(monkeypatch, capsys):
    (program,) = re.findall(
        r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    monkeypatch.chdir(ROOT)
    exec(compile(program, "README.md", "exec"), {})
    assert '"small" (layer 12) at position 8' in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, capsys):
    """Its code cells, one after the other, in one namespace; it is kept without outputs."""
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(ROOT / "docs")
    namespace: dict[str, object] = {}
    pictures = {}
    for number, cell in enumerate(cells):
        program = ast.parse("".join(cell["source"]))
        last = program.body.pop() if isinstance(program.body[-1], ast.Expr) else None
        exec(compile(program, f"cell {number}", "exec"), namespace)
        if last:  # what a notebook shows of it
            shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
            if hasattr(shown, "_repr_html_"):
                pictures[type(shown).__name__] = shown._repr_html_()
    assert "small" in capsys.readouterr().out
    assert set(pictures) == {"Circuit", "FeatureRecord", "HeadScores"}
    assert all(len(html) > 500 for html in pictures.values())


def test_the_readme_fits_a_screen_and_a_half():
    assert len(README.read_text(encoding="utf-8").split()) <= WORDS


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, place = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), target


def test_what_the_docs_name_in_the_package_exists():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {name for text in texts for name in re.findall(r"\b(saekit(?:\.[A-Za-z_]\w*)+)", text)}
    assert len(named) >= 10
    for name in sorted(named):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            with contextlib.suppress(ModuleNotFoundError):
                found: object = importlib.import_module(".".join(parts[:cut]))
                break
        for part in parts[cut:]:
            found = getattr(found, part)  # AttributeError: the docs name what is not there


def test_the_benchmarks_named_in_the_docs_exist():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {name for text in texts for name in re.findall(r"python (benchmarks/\w+\.py)", text)}
    assert len(named) >= 7
    assert [name for name in named if not (ROOT / name).is_file()] == []
