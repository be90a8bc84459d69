"""A prompt, run once: its positions with and without BOS, and what it calls features.

Mutations tried: names by the score of the reporting part; `>` for `>=`; the name first; the index
of a position without `first`.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from saekit.concepts.spans import prompt_spans
from saekit.errors import MismatchError
from saekit.features.fingerprint import dictionary_fingerprint
from saekit.features.names.name_file import NAMES, FeatureNames, LayerNames, write_names
from saekit.model.loading import LanguageModel
from saekit.report.terminal.circuit_text import render
from saekit.routes.graph.builder import attribution_graph
from saekit.routes.prompt_run import PromptRun, good_names, namer, names_of
from saekit.routes.trace import trace
from saekit.sae.storage.dictionary_set import DictionarySet

PROMPT = 'The opposite of "large" is "'


def write(folder, dictionaries: list[str], given: dict[tuple[int, int], tuple[str, float, float]]):
    """Names {(layer, feature): (name, detection on the choosing, on the reporting part)}."""
    layers = [LayerNames.empty(4) for _ in dictionaries]
    for (layer, feature), (text, chosen, reported) in given.items():
        layers[layer].set(feature, text, "input", "current word", 1.0, 20.0)
        layers[layer].scores["chosen_detection"][feature] = chosen
        layers[layer].scores["detection"][feature] = reported
    index = SimpleNamespace(
        model="m", fingerprint="f", dictionaries=dictionaries, layers=list(range(len(layers))),
        sizes=[4] * len(layers), d_sae=4,
    )  # fmt: skip
    about = {"labeller": "rules", "text": "", "n_tokens": 1, "summary": {}}
    write_names(folder / NAMES, index, layers, **about)  # type: ignore[arg-type]
    return FeatureNames.read(folder / NAMES)


def test_concept_then_name_then_doubt_then_nothing(tmp_path, one, named):
    names = write(
        tmp_path, ["a", "b"],
        {
            (1, 0): ("big", 1.0, 1.0), (1, 1): ("hot", 0.9, 0.5), (1, 2): ("cold", 0.75, 1.0),
            (1, 3): ("old", 0.745, 1.0), (0, 1): ("rare", np.nan, np.nan),
        },
    )  # fmt: skip
    call = namer(named(one), good_names(names))
    assert call(1, 0) == "large"  # a member of the concept at every layer
    assert [call(1, feature) for feature in (1, 2, 3)] == ["hot", "cold ?", None]
    assert [call(0, 1), call(0, 2), call(9, 0)] == [None] * 3
    assert namer(None, good_names(names))(1, 0) == "big"
    assert namer(None, None)(1, 0) is None


@pytest.fixture(scope="module")
def one(planted):
    return planted({(1, 2): 8.0})


def at(folder, dictionaries: DictionarySet) -> DictionarySet:
    layers = {layer: dictionaries[layer] for layer in dictionaries.layers}
    return DictionarySet(layers, dictionaries.manifest, folder)


def test_names_of_other_dictionaries_are_refused(tmp_path, one, known_features):
    dictionaries = at(tmp_path, known_features(one))
    assert names_of(dictionaries) is None
    own = [dictionary_fingerprint(dictionaries[layer]) for layer in dictionaries.layers]
    write(tmp_path, own, {})
    assert names_of(dictionaries) is not None
    write(tmp_path, [*own[:3], "another"], {})
    with pytest.raises(MismatchError, match="other dictionaries than those in .*: layer 3"):
        names_of(dictionaries)


def test_a_circuit_and_its_graph_show_names(tmp_path, one, known_features):
    dictionaries = at(tmp_path, known_features(one))
    own = [dictionary_fingerprint(dictionaries[layer]) for layer in dictionaries.layers]
    write(tmp_path, own, {(1, 0): ("big house", 0.8, 0.8)})
    circuit = trace(one, dictionaries, PROMPT, target="3/1", random_sets=5)
    assert [(s.feature, s.name) for s in circuit.sources] == [("1/0", "big house ?")]
    assert "1/0 [big house ?]" in render(circuit)
    graph = attribution_graph(one, dictionaries, PROMPT, target="3/1")
    assert "big house ? (1/0)" in [node["clerp"] for node in graph["nodes"]]


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_positions_are_counted_in_two_ways(one, known_features, named, prepend_bos):
    """By hand: 8 tokens, "large" is the fifth; in front of them may be BOS, position 0."""
    model = LanguageModel("planted", one.hf, one.tokenizer, prepend_bos=prepend_bos)
    run = PromptRun.of(model, known_features(one), PROMPT)
    assert (run.n, run.first, len(run.clean.ids)) == (8, prepend_bos, 8 + prepend_bos)
    assert run.positions == list(range(9))[not prepend_bos :]
    assert [run.positions[run.index(p)] for p in range(1, 9)] == list(range(1, 9))
    assert int(run.clean.ids[run.index(5)]) == model.single_token("large")
    assert run.tokens[5 - 1] == "large"
    assert run.query(None) == 8


def test_spans_are_those_of_the_run_itself(one, known_features, named):
    """The same as from a pass of their own; given ones are taken as they are."""
    dictionaries, catalogue = known_features(one), named(one)
    for score in (score for concept in catalogue.concepts for score in concept.layers):
        score.p99 = [1.0]
    run = PromptRun.of(one, dictionaries, PROMPT, catalogue)
    assert [(s.name, s.position) for s in run.spans] == [
        (s.name, s.position) for s in prompt_spans(one, dictionaries, catalogue, PROMPT)
    ]
    assert run.spans
    assert PromptRun.of(one, dictionaries, PROMPT, catalogue, spans=[]).spans == []
    assert PromptRun.of(one, dictionaries, PROMPT).spans == []
