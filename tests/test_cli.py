"""The command line as a user meets it: the whole line on a tiny model, and bad input."""

import json
import re
import shutil

import jsonschema
import pytest

from saekit.activations.residuals import residuals
from saekit.cli import build_parser, main
from saekit.features.index.feature_index import FeatureIndex
from saekit.model.loading import load_model
from saekit.routes.trace_document import schema
from saekit.sae.storage.dictionary_set import DictionarySet

PROMPT = 'The opposite of "large" is "'


@pytest.fixture(scope="module")
def line(tiny_model_folder, tmp_path_factory):
    """A dictionary set that went through train, index and concepts by the command line."""
    out = tmp_path_factory.mktemp("set") / "dictionaries"
    train = ["train", str(tiny_model_folder), "--out", str(out), "--features", "96", "--k", "8"]
    assert main([*train, "--tokens", "12000", "--context", "48", "--batch-tokens", "512"]) == 0
    assert main(["index", str(out), "--tokens", "4000"]) == 0
    assert main(["concepts", str(out), "--tokens", "6000"]) == 0
    return out


def json_of(capsys, arguments):
    """Run a command with --json and parse all of its standard output."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


COMMANDS = (
    "fetch demo train evaluate pretrain import export index names query concepts trace report view "
    "means heads doctor"
).split()


def test_all_commands_are_listed(capsys):
    assert main([]) == 0
    listed = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    words = capsys.readouterr().out
    assert words.startswith(f"usage: saekit {command} ")
    assert "--json" in words
    subcommands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert [action.dest for action in subcommands[command]._actions if not action.help] == []


def test_evaluate_has_one_row_per_layer(line, capsys):
    rows = json_of(capsys, ["evaluate", str(line), "--tokens", "2000"])["layers"]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert all(0 < row["l0"] <= 8 for row in rows)


def test_query_by_token_text_and_feature(line, tiny_model_folder, capsys):
    hits = json_of(capsys, ["query", str(line), "--token", " the"])
    assert hits["hits"], "a frequent token fires no feature"
    name = f"{hits['hits'][0]['layer']}/{hits['hits'][0]['feature']}"
    record = json_of(capsys, ["query", str(line), "--feature", name])
    assert record["feature"] == hits["hits"][0]["feature"]
    found = json_of(capsys, ["query", str(line), "--text", "The opposite"])
    assert found["tokens"] == ["The", " opposite"]
    assert {hit["position"] for hit in found["hits"]} == {1, 2}
    assert all(hit["activation"] > 0 for hit in found["hits"])
    dictionaries, model = DictionarySet.load(line), load_model(str(tiny_model_folder))
    stream = residuals(model, model.prompt("The opposite")[None], [1])[0]
    expected = dictionaries[1].encode(stream[0, 2])
    strongest = max(
        (hit for hit in found["hits"] if (hit["layer"], hit["position"]) == (1, 2)),
        key=lambda hit: hit["activation"],
    )
    assert strongest["feature"] == int(expected.argmax())
    assert strongest["activation"] == pytest.approx(float(expected.max()), rel=1e-4)
    assert main(["query", str(line), "--token", "the"]) == 0
    assert " the" in capsys.readouterr().out


def test_names_are_made_with_the_index_and_shown(line, capsys):
    names = json_of(capsys, ["names", str(line), "--tokens", "6000"])
    assert names["summary"]["features"] == 4 * 96
    assert names["tokens"] >= 6000
    assert main(["names", str(line), "--tokens", "6000"]) == 0
    assert "detection (null)" in capsys.readouterr().out
    with FeatureIndex.open(line) as index:
        assert index.names is not None
        layer, feature = next(
            (layer, feature) for layer in index.layers for feature in range(96)
            if index.names.get(layer, feature).kind
        )  # fmt: skip
    with_name = f"{layer}/{feature}"
    text = json_of(capsys, ["query", str(line), "--feature", with_name])["naming"]["text"]
    found = json_of(capsys, ["query", str(line), "--concept", text])["features"]
    assert with_name in {row["name"] for row in found}
    for what in (["--concept", text], ["--feature", with_name], ["--token", " the"]):
        assert main(["query", str(line), *what, "--csv"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("name,") and len(lines) > 1


def test_automatic_concepts_are_listed(line, tmp_path, capsys):
    shutil.copytree(line, tmp_path / "set")
    folder = str(tmp_path / "set")
    assert main(["concepts", folder, "--find", "--tokens", "6000"]) == 0
    capsys.readouterr()
    document = json.loads((tmp_path / "set" / "concepts.json").read_text())
    document["automatic"] = [
        {"name": "sizes", "kind": "input", "span": [0, 1], "features": ["0/3", "1/7"],
         "best": "1/7", "detection": 0.93, "null_detection": 0.51, "fuzzing": None, "f1": 0.8,
         "auroc": 0.99}
    ]  # fmt: skip
    (tmp_path / "set" / "concepts.json").write_text(json.dumps(document))
    listed = json_of(capsys, ["concepts", folder, "--all"])["automatic"]
    assert listed == document["automatic"]
    assert main(["concepts", folder, "--all"]) == 0
    assert "1/7 and 1 more" in capsys.readouterr().out
    document["automatic"] = []
    (tmp_path / "set" / "concepts.json").write_text(json.dumps(document))
    assert "saekit names" in refused(capsys, "concepts", folder, "--all")


def test_trace_and_report_show_the_same_numbers(line, capsys, tmp_path):
    circuit = json_of(capsys, ["trace", str(line), PROMPT, "--random-sets", "20"])
    assert circuit["tokens"][4] == "large"
    assert circuit["completeness_error"] <= 1e-4
    files = json_of(capsys, ["report", str(line), PROMPT, "--random-sets", "20",
                             "--out", str(tmp_path)])["files"]  # fmt: skip
    stored = json.loads((tmp_path / "circuit.json").read_text())
    for volatile in ("dictionaries",):
        stored.pop(volatile), circuit.pop(volatile)
    assert stored == circuit
    assert {path.rsplit("/", 1)[1] for path in files} >= {"circuit.svg", "report.html"}


def test_a_trace_of_a_model_without_dictionaries(tiny_model_folder, capsys):
    command = ["trace", "--model", str(tiny_model_folder), PROMPT, "--random-sets", "5"]
    circuit = json_of(capsys, command)
    jsonschema.validate(circuit, schema())
    assert circuit["dictionaries"] == "none" and circuit["concepts"] == circuit["sources"] == []
    assert circuit["target"]["kind"] == "token"
    assert circuit["target"]["token"] == circuit["prediction"][0]["token"]
    assert circuit["set"]["heads"] and circuit["error_node_share"] is None
    assert any("No dictionaries were read" in note for note in circuit["notes"])
    assert main(command) == 0
    assert "saekit train makes" in " ".join(capsys.readouterr().out.split())
    assert "train them with saekit train" in refused(capsys, *command, "--target", "2/7")


def test_a_trace_with_means_and_a_counterfactual_prompt(line, tiny_model_folder, capsys, tmp_path):
    file = str(tmp_path / "new" / "means.safetensors")
    made = json_of(capsys, ["means", str(tiny_model_folder), "--out", file, "--tokens", "2000"])
    assert (made["means"], made["context"]) == (file, 64)
    other = ["--means", file, "--counterfactual", PROMPT.replace("opposite", "large")]
    circuit = json_of(capsys, ["trace", str(line), PROMPT, "--random-sets", "5", *other])
    names = [row["name"] for row in circuit["ablations"]]
    assert names == ["zero", "renormalise", "mean", "resample", "resample full", "zero"]
    assert [row["direct"] for row in circuit["ablations"]] == [False] * 5 + [True]
    longer = [*other[:2], "--counterfactual", "one two three four five six seven eight nine ten"]
    assert "equal length" in refused(capsys, "trace", str(line), PROMPT, *longer)
    assert "cannot be read" in refused(capsys, "trace", str(line), PROMPT, "--means", str(line))


def test_trace_with_changes_variants_and_a_graph(line, capsys, tmp_path):
    """One document that the published schema describes; the same on the screen and in files."""
    words = tmp_path / "words.toml"
    words.write_text("template = 'The opposite of \"{word}\" is \"'\nword = ['large', 'small']\n")
    command = ["trace", str(line), PROMPT, "--random-sets", "5", "--swap", "large@5->small"]
    command += ["--set", "2/7@5=1.5", "--variants", str(words), "--out", str(tmp_path / "out")]
    command += ["--graph", str(tmp_path / "graph.json")]
    document = json_of(capsys, command)
    jsonschema.validate(document, schema())
    changes = [outcome["change"] for outcome in document["interventions"]]
    assert changes == ["large@5->small", "2/7@5=1.5", "large@5->small and 2/7@5=1.5"]
    assert document["variants"]["n"] == 2
    for name in ("interventions", "variants"):
        stored = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert stored == {"schema_version": 1, name: document[name]}
    graph = json.loads((tmp_path / "graph.json").read_text())
    assert graph["metadata"]["prompt"] == PROMPT
    into = sum(link["weight"] for link in graph["links"]
               if link["target"] == graph["qParams"]["clickedId"])  # fmt: skip
    assert into == pytest.approx(document["target"]["preactivation"], rel=1e-3)
    assert main(command) == 0
    screen = capsys.readouterr().out
    for words in ("Change  large@5->small", "Change  2/7@5=1.5", "Variants  2 prompts", "Target"):
        assert words in screen


def test_concepts_are_read_back(line, capsys):
    document = json_of(capsys, ["concepts", str(line)])
    assert [concept["name"] for concept in document["concepts"]] == [
        "opposite", "large", "brackets", "small",
    ]  # fmt: skip
    one = json_of(capsys, ["concepts", str(line), "--concept", "large"])
    assert len(one["concepts"]) == 1


def refused(capsys, *arguments):
    """The one sentence of a refused command."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [row for row in captured.err.splitlines() if row.startswith("saekit: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace", "{set}", ""], "empty"),
        (["trace", "{set}", "word " * 200], "tokens"),
        (["trace", "{set}", PROMPT, "--query", "99"], "99"),
        (["trace", "{set}", PROMPT, "--set", "large=0"], "large@5=0"),
        (["trace", "{set}", PROMPT, "--swap", "hot@5->cold"], 'position 5 is "large"'),
        (["trace", "{set}", PROMPT, "--variants", "{set}/none.txt"], "none.txt"),
        (["trace", "{set}", PROMPT, "--graph", "/proc/nowhere/graph.json"], "/proc/nowhere"),
        (["trace", "{set}", PROMPT, "--graph", "{set}"], "the path of a file"),
        (["trace", "{set}", PROMPT, "--device", "abacus"], 'no device "abacus"'),
        (["trace", "{set}", PROMPT, "--key", "8", "--query", "3"], "before"),
        (["trace", "{set}", PROMPT, "--target", "9/1"], "layer 9"),
        (["trace", "{set}", PROMPT, "--target", "0/1"], "0/1"),
        (["trace", "{set}", PROMPT, "--target", "nowhere at all"], "nowhere at all"),
        (["query", "{set}", "--feature", "1/9999"], "9999"),
        (["query", "{set}", "--feature", "one"], "one"),
        (["query", "{set}", "--concept", "no such"], "no such"),
        (["query", "{set}", "--token", "the", "--csv", "--json"], "--csv"),
        (["names", "{set}", "--features", "0/1"], "--labeller"),
        (["names", "{set}", "--labeller", "http://x"], "--labeller-model"),
        (
            ["names", "{set}", "--labeller", "x", "--labeller-model", "m", "--features", "0/1"],
            "http address",
        ),
        (["query", "{set}", "--token", "zzzzqqq"], "zzzzqqq"),
        (["query", "{set}/nowhere", "--token", "large"], "nowhere"),
        (["query", "{set}", "--token", "large", "--top", "0"], "--top is 0"),
        (["concepts", "{set}", "--all", "--top", "-1"], "--top is -1"),
        (["evaluate", "{set}", "--text", "{set}/no_such_text"], "no_such_text"),
        (["evaluate", "{set}", "--model", "{set}"], "model"),
        (["concepts", "{set}", "--concept", "tall"], "tall"),
        (["concepts", "{set}", "--file", "{set}/none.toml"], "none.toml"),
        (["train", "{model}", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["train", "{model}", "--out", "{new}", "--features", "4", "--k", "8"], "k is 8"),
        (["train", "{model}", "--out", "{new}", "--layers", "7"], "7"),
        (["report", "{set}", PROMPT, "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["means", "{model}", "--out", "/proc/nowhere/means"], "/proc/nowhere"),
        (["means", "{model}", "--out", "{new}", "--tokens", "0"], "at least 1"),
        (["trace", "{set}", PROMPT, "--means", "{new}"], "cannot be read"),
        (["trace", "{set}", PROMPT, "--counterfactual", PROMPT], "the prompt itself"),
    ],
)
def test_bad_input_is_one_sentence(line, tiny_model_folder, tmp_path, capsys, arguments, words):
    places = {"set": line, "model": tiny_model_folder, "new": tmp_path / "new"}
    assert words in refused(capsys, *(argument.format(**places) for argument in arguments))


def test_a_missing_index_names_the_command_that_makes_it(line, tmp_path, capsys):
    shutil.copytree(line, tmp_path / "set")
    (tmp_path / "set" / "index.h5").unlink()
    assert "saekit index" in refused(capsys, "query", str(tmp_path / "set"), "--token", "large")


def test_a_truncated_index_or_weights_file_is_refused(line, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(line, folder)
    index = folder / "index.h5"
    index.write_bytes(index.read_bytes()[:1000])
    assert "index.h5" in refused(capsys, "query", str(folder), "--token", "large")
    weights = folder / "blocks.1.hook_resid_pre" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "sae_weights" in refused(capsys, "evaluate", str(folder))


def test_dictionaries_of_another_model_are_refused(line, tiny_model_folder, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    state = load_file(other / "model.safetensors")
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"] + 1
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    sentence = refused(capsys, "trace", str(line), PROMPT, "--model", str(other))
    assert "fingerprint" in sentence


def test_an_earlier_run_is_not_overwritten(line, tiny_model_folder, capsys):
    before = (line / "manifest.json").read_bytes()
    sentence = refused(capsys, "train", str(tiny_model_folder), "--out", str(line))
    assert "--resume" in sentence
    assert (line / "manifest.json").read_bytes() == before
