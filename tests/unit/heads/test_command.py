"""`saekit heads` as a user meets it: documents, files, and bad input in one sentence."""

import json
import shutil

import jsonschema
import pytest

from saekit.cli import main
from saekit.heads.document import schema

WORDS = ["large", "small", "big", "little", "hot", "cold", "warm", "cool", "tall", "short"]


@pytest.fixture
def relation(tmp_path):
    """Every pair of two of ten words."""
    path = tmp_path / "mine.csv"
    rows = [f"{a},{b}" for a in WORDS for b in WORDS if a != b]
    path.write_text("\n".join(["source,target", *rows]) + "\n")
    return path


def test_json_and_table(tiny_model_folder, relation, capsys):
    command = ["heads", str(tiny_model_folder), "--relation", str(relation)]
    assert main([*command, "--json", "--pairs", "--salient", "L0-H1"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema())
    assert document["relation"]["name"] == "mine" and document["k"] == 10
    assert document["pairs"]["listed"] == 90 >= document["pairs"]["kept"] >= 30
    assert [(one["head"], one["side"]) for one in document["salient"]] == [
        ("L0-H1", "raises"), ("L0-H1", "lowers"),
    ]  # fmt: skip
    assert document["classes"] is None and any("two-name" in note for note in document["notes"])
    assert main([*command, "--no-classes", "--k", "3"]) == 0
    assert "(Suppression) Mine heads" in capsys.readouterr().out


def test_files_by_suffix_and_a_folder(tiny_model_folder, relation, tmp_path, capsys):
    command = ["heads", str(tiny_model_folder), "--relation", str(relation), "--no-classes"]
    assert main([*command, "--out", str(tmp_path / "a.svg")]) == 0
    assert main([*command, "--out", str(tmp_path / "all")]) == 0
    capsys.readouterr()
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {f"heads.{suffix}" for suffix in ("json", "csv", "svg", "png", "html")}
    jsonschema.validate(json.loads((tmp_path / "all" / "heads.json").read_text()), schema())


def test_dynamic_and_causal(tiny_model_folder, relation, capsys):
    command = ["heads", str(tiny_model_folder), "--relation", str(relation), "--no-classes"]
    assert main([*command, "--json", "--dynamic", "--causal"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema())
    assert set(document["dynamic"]["correlation"]) >= {"forced", "natural"}
    assert document["causal"]["prompts"] == 10


def test_the_list_of_relations(capsys):
    assert main(["heads", "--relations", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["relations"]
    assert len(rows) >= 15 and {"name", "pairs", "k", "source"} <= set(rows[0])


def refused(capsys, *arguments):
    assert main(["heads", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    (line,) = [row for row in captured.err.splitlines() if row.startswith("saekit: ")]
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}", "--relation", "no_such"], "no_such"),
        (["{model}", "--relation", "{tmp}/none.csv"], "none.csv"),
        (["{model}", "--relation", "capitals"], "single tokens"),
        (["{model}", "--relation", "{mine}", "--k", "0"], "k is 0"),
        (["{model}", "--relation", "{mine}", "--k", "640"], "k is 640"),
        (["{model}", "--relation", "{mine}", "--salient", "9.9"], "L9-H9"),
        (["{model}", "--relation", "{mine}", "--salient", "best"], "best"),
        (["{model}", "--relation", "{mine}", "--out", "{tmp}/a.pdf"], ".pdf"),
        (["{model}", "--relation", "{mine}", "--out", "/proc/none/a.svg"], "/proc/none"),
        (["{tmp}/nowhere"], "nowhere"),
        (["{tmp}"], "no config.json"),
        (["{other}"], "bert"),
    ],
)
def test_bad_input_is_one_sentence(tiny_model_folder, relation, tmp_path, capsys, arguments, said):
    other = tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    places = {"model": tiny_model_folder, "mine": relation, "tmp": tmp_path, "other": other}
    assert said in refused(capsys, *(argument.format(**places) for argument in arguments))
