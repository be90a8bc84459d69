"""Planted circuits: what is planted is found, exactly, and nothing else.

Mutations tried by hand, each of which fails here: the LayerNorm scale of the query in place of the
key's; the pattern transposed; BOS counted as a position; key and query exchanged in the ablation;
the joint drop given as the sum of single drops.  A dropped value bias is invisible here (the
planted one is 0) and fails in test_attribution.py.
"""

from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import pytest
import torch

from saekit.errors import InputError, MismatchError
from saekit.model.exact import ExactModel
from saekit.model.loading import LanguageModel
from saekit.routes.attribution.paths import frozen_maps, split_paths
from saekit.routes.attribution.qk import split_score
from saekit.routes.target import token_target
from saekit.routes.trace import trace
from saekit.routes.trace_document import schema
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.wording import number

PROMPT = 'The opposite of "large" is "'
ONE = {(1, 2): 8.0}


@pytest.fixture(scope="module")
def one(planted):
    return planted(ONE)


def check(circuit):
    """What every circuit must satisfy; returns it."""
    document = circuit.to_dict()
    jsonschema.validate(document, schema())
    p = circuit.target.preactivation
    assert sum(row.value for row in circuit.components) == pytest.approx(p, rel=1e-4, abs=1e-5)
    assert circuit.n80 == len(circuit.set.heads)
    arrived = sum(row.positive for row in circuit.arrivals if row.position > 0)
    shares = [row.share for row in circuit.arrivals if row.share is not None]
    if circuit.set.share_positive is not None and arrived > 0:
        assert sum(shares) == pytest.approx(1, abs=1e-4)
    for row in circuit.arrivals:
        assert row.positive + row.negative == pytest.approx(row.net, rel=1e-4, abs=1e-6)
    return circuit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_planted_head(one, known_features, basis, dtype):
    """x(q) . v = strength A (x(5) . u) / sigma(5): everything is known by hand."""
    circuit = check(trace(one, known_features(one), PROMPT, target="3/1", dtype=dtype))
    u, _ = basis
    x = one.hf.transformer.wte.weight[one.single_token("large")].detach()
    sigma = (x.square().mean() + 1e-5).sqrt()
    moved = 8 * (1 / 9) * float(x @ u / sigma)  # uniform attention over 9 tokens, BOS included
    assert (circuit.key, circuit.query, circuit.n80, circuit.n80_all_keys) == (5, 8, 1, 1)
    assert circuit.set.heads == ["L1-H2"]
    assert circuit.target.preactivation == pytest.approx(moved, rel=1e-4)
    head = circuit.heads[0]
    assert (head.head, head.layer, head.index) == ("L1-H2", 1, 2)
    assert head.attention == pytest.approx(1 / 9, rel=1e-4)
    assert [head.contribution, head.causal] == pytest.approx([moved, moved], rel=1e-4)
    chosen = circuit.set
    assert [
        head.share, chosen.share_positive, chosen.share_signed, chosen.share_causal,
        chosen.share_of_key, chosen.share_causal_of_key, chosen.share_of_preactivation,
    ] == pytest.approx([1] * 7, abs=1e-4)  # fmt: skip
    assert chosen.joint_drop == pytest.approx(moved, rel=1e-4)
    assert len(circuit.heads) == 1, "a head that carries nothing must not be listed"
    assert circuit.completeness_error < (1e-4 if dtype == torch.float32 else 1e-10)
    assert circuit.error_node_share == pytest.approx(0, abs=1e-4)
    (source,) = circuit.sources
    assert source.feature == "1/0"
    assert [source.contribution, source.share] == pytest.approx([moved, 1], rel=1e-4)


def test_random_sets_do_nothing_in_a_planted_circuit(one, known_features):
    circuit = trace(one, known_features(one), PROMPT, target="3/1", random_sets=30)
    assert circuit.random_sets.n == 30
    assert circuit.random_sets.size == 1
    assert circuit.random_sets.p95_drop == pytest.approx(0, abs=1e-5)
    assert circuit.random_sets.share_below == 1


def test_two_redundant_heads(planted, known_features):
    """Behind the final LayerNorm either head alone says almost as much as both."""
    model = planted({(1, 1): 60.0, (1, 3): 60.0})
    circuit = check(trace(model, known_features(model), PROMPT, target="small"))
    assert circuit.target.kind == "token"
    assert sorted(circuit.set.heads) == ["L1-H1", "L1-H3"]
    assert [head.share for head in circuit.heads] == pytest.approx([0.5, 0.5], abs=1e-4)
    assert circuit.set.joint_drop > 5 * circuit.set.sum_of_single_drops > 0
    assert any("redundant" in note for note in circuit.notes)
    assert circuit.prediction[0].token == "small"
    assert circuit.set.prediction_after < 0.1 * circuit.prediction[0].probability


def test_a_suppressing_head_is_negative_and_not_in_the_set(planted, known_features):
    """+8 and -2 of the same content: signed share 8 / (8 - 2).  Removing the +8 lowers the target
    by more than removing both, so it has no causal share of both.

    Mutation tried: the causal share cut to 1, as it once was.
    """
    model = planted({(1, 2): 8.0, (1, 0): -2.0})
    circuit = check(trace(model, known_features(model), PROMPT, target="3/1"))
    assert circuit.set.heads == ["L1-H2"]
    assert circuit.set.share_positive == pytest.approx(1, abs=1e-4)
    assert circuit.set.share_signed == pytest.approx(8 / 6, rel=1e-4)
    assert circuit.set.share_causal is circuit.set.share_causal_of_key is None
    assert circuit.set.joint_drop == pytest.approx(circuit.all_edges_drop * 8 / 6, rel=1e-4)
    drops = f"{number(circuit.set.joint_drop)} without the set and by "
    drops += f"{number(circuit.all_edges_drop)} without all edges into the query"
    assert any(drops in note for note in circuit.notes)
    assert any("no causal share of all heads' edges from position 5" in n for n in circuit.notes)
    row = circuit.arrivals[circuit.key]
    assert row.negative == pytest.approx(-row.positive / 4, rel=1e-4)
    assert any("work against" in note for note in circuit.notes)


def test_a_head_in_two_parts_of_a_set(planted, known_features):
    """Strengths 5, 3, 2: two heads reach 80% exactly; listed heads are another set."""
    model = planted({(0, 0): 5.0, (0, 1): 3.0, (0, 2): 2.0})
    circuit = check(trace(model, known_features(model), PROMPT, target="2/1", heads=1))
    assert circuit.set.heads == ["L0-H0", "L0-H1"]
    assert circuit.set.share_positive == pytest.approx(0.8, abs=1e-4)
    assert circuit.set.share_causal == pytest.approx(0.8, abs=1e-4)
    assert circuit.shown.heads == ["L0-H0"]
    assert circuit.shown.share_positive == pytest.approx(0.5, abs=1e-4)
    assert circuit.set.sum_of_single_drops == pytest.approx(circuit.set.joint_drop, rel=1e-4)


def test_without_bos(one, known_features):
    model = LanguageModel("planted", one.hf, one.tokenizer, prepend_bos=False)
    circuit = check(trace(model, known_features(model), PROMPT, target="3/1"))
    assert (circuit.key, circuit.query, len(circuit.tokens)) == (5, 8, 8)
    assert circuit.heads[0].attention == pytest.approx(1 / 8, rel=1e-4)
    assert circuit.arrivals[0].position == 1
    assert not circuit.prepend_bos


def test_bos_is_in_no_share(tiny_model, random_dictionaries):
    circuit = check(trace(tiny_model, random_dictionaries, PROMPT))
    assert circuit.arrivals[0].position == 0
    assert circuit.arrivals[0].share is None
    assert circuit.arrivals[0].positive > 0
    assert len(circuit.patterns[0][0]) == len(circuit.tokens) == 8


def test_automatic_target_is_the_output_concept(one, known_features, named):
    """The model says "small"; the concept of that name has feature 3/1."""
    circuit = check(trace(one, known_features(one), PROMPT, catalogue=named(one), spans=[]))
    assert circuit.prediction[0].token == "small"
    target = circuit.target
    assert (target.concept, target.kind, target.feature) == ("small", "concept", "3/1")
    assert circuit.sources[0].name == "large"


def test_automatic_target_without_concepts_is_the_feature_that_says_it(one, known_features):
    target = trace(one, known_features(one), PROMPT).target
    assert (target.concept, target.kind, target.feature) == ("small", "feature", "3/1")


def test_the_name_of_such_a_feature_is_no_evidence_and_a_note_says_so(one, known_features, named):
    """The whole stream along v is the feature's, and only v speaks for "small": all of its logit
    but what the mean takes off.  A concept of the catalogue, or a target asked for, has no note."""
    circuit = trace(one, known_features(one), PROMPT)
    token = trace(one, known_features(one), PROMPT, circuit.target.concept, random_sets=0)
    (note,) = [note for note in circuit.notes if "no concept found on text" in note]
    assert "'small' is no concept found on text but the name of feature 3/1" in note
    assert note.endswith(f" of {number(token.target.preactivation)}.")
    for options in ({"target": "3/1"}, {"catalogue": named(one), "spans": []}):
        other = trace(one, known_features(one), PROMPT, random_sets=0, **options)
        assert not any("no concept found" in note for note in other.notes)


def test_automatic_target_without_any_such_feature_is_the_logit(one, known_features):
    dictionaries = known_features(one)
    dictionaries[3].W_dec[1] = -dictionaries[3].W_dec[1]
    target = trace(one, dictionaries, PROMPT).target
    dictionaries[3].W_dec[1] = -dictionaries[3].W_dec[1]
    assert (target.concept, target.kind, target.feature) == ("small", "token", None)
    assert target.token == "small"


def test_a_named_concept_and_its_spans(one, known_features, named):
    span = SimpleNamespace(
        name="large", kind="input", position=5, first=0, last=3, features=["0/0"], evidence=2.5
    )
    circuit = check(
        trace(one, known_features(one), PROMPT, "SMALL", catalogue=named(one), spans=[span])
    )
    assert circuit.target.feature == "3/1"
    assert circuit.concepts[0].span == [0, 3]


def test_what_is_listed_as_present_can_be_the_target(one, known_features, named):
    """Below its threshold, but with a span at the query: present for both, or for neither.

    Mutation tried: spans not given to the chooser.
    """
    catalogue = named(one)
    catalogue.concept("small").at(3).threshold = 1e6
    span = SimpleNamespace(
        name="small", kind="output", position=8, first=3, last=3, features=["3/1"], evidence=None
    )
    options = {"catalogue": catalogue, "target": "small"}
    circuit = check(trace(one, known_features(one), PROMPT, spans=[span], **options))
    assert (circuit.target.feature, circuit.target.kind) == ("3/1", "concept")
    elsewhere = SimpleNamespace(**{**vars(span), "position": 7})
    refused(
        'The concept "small" is not active at position 8', one, known_features(one), PROMPT,
        spans=[elsewhere], **options,
    )  # fmt: skip


def test_a_concept_that_was_not_found_is_taken_as_a_token(one, known_features, named):
    circuit = trace(one, known_features(one), PROMPT, "cold", catalogue=named(one), spans=[])
    assert (circuit.target.kind, circuit.target.concept) == ("token", "cold")


def test_a_given_key_and_query(one, known_features):
    """At position 7 the same head carries "large" too; from position 6 it carries nothing."""
    circuit = check(trace(one, known_features(one), PROMPT, "3/1", query=7))
    assert (circuit.key, circuit.query, circuit.target.position) == (5, 7, 7)
    assert circuit.set.heads == ["L1-H2"]
    assert any("Position 5 is the key because most arrives" in note for note in circuit.notes)
    nothing = check(trace(one, known_features(one), PROMPT, "3/1", query=7, key=6))
    assert not any("is the key because" in note for note in nothing.notes)
    contributions = [head.contribution for head in nothing.heads]
    assert contributions == pytest.approx([0] * len(contributions), abs=1e-5)
    assert nothing.set.share_positive == pytest.approx(0, abs=1e-5)


def test_a_share_of_next_to_nothing_is_refused(one, known_features):
    """A feature with a bias of 100 is active everywhere: what arrives (2.4) is no part of why."""
    dictionaries = known_features(one)
    dictionaries[3].b_enc[1] = 100
    circuit = check(trace(one, dictionaries, PROMPT, "3/1"))
    dictionaries[3].b_enc[1] = 0
    chosen = circuit.set
    assert chosen.heads == ["L1-H2"]
    assert chosen.share_positive is chosen.share_signed is chosen.share_causal is None
    assert sum("refused" in note for note in circuit.notes) == 1
    assert sum("no causal share" in note for note in circuit.notes) == 2


def test_nothing_carried_gives_an_empty_set(one, known_features):
    """Feature u at "large" itself: the embedding says it all, no head writes it."""
    circuit = check(trace(one, known_features(one), PROMPT, "1/0", query=5))
    assert (circuit.set.heads, circuit.heads, circuit.n80, circuit.random_sets.n) == ([], [], 0, 0)
    assert circuit.set.share_positive is None
    assert any(note.startswith("No head carries anything") for note in circuit.notes)


def refused(sentence, *args, error=InputError, **options):
    with pytest.raises(error) as caught:
        trace(*args, **options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_sentence(one, known_features, named, tiny_model):
    dictionaries, catalogue = known_features(one), named(one)

    def no(sentence, prompt=PROMPT, **options):
        refused(sentence, one, dictionaries, prompt, **options)

    no("The prompt is empty", "")
    no("reads at most 63", "large " * 70)
    no("Query position 9 does not exist: the prompt has positions 1 to 8", query=9)
    no("Query position 0 does not exist", query=0)
    no("Key position 12 does not exist", key=12)
    no("Key position 8 is not before query position 8", key=8)
    no("Key position 6 is not before query position 4", query=4, key=6)
    no("Nothing can arrive at position 1", "large")
    no("heads must be at least 1", heads=0)
    no("has no dictionary for layer 7", target="7/1")
    no("Feature 3/2 does not exist: the dictionary of layer 3 has features 0 to 1", target="3/2")
    no("Feature 3/0 is not active at position 8; the most similar features active there are: 3/1",
       target="3/0")  # fmt: skip
    no("is neither a concept (none are loaded), nor a feature", target="opposite of large")
    named_options = {"catalogue": catalogue, "spans": []}
    no('The concept "large" is not active at position 8; active there: small; '
       "large is active at: no position", target="large", **named_options)  # fmt: skip
    there = [SimpleNamespace(name="large", position=place, first=0, last=3) for place in (2, 5)]
    no("active there: small; large is active at: 5, 2.", target="large", catalogue=catalogue,
       spans=there)  # fmt: skip
    no('The concept "hot one" was not found in these dictionaries', target="hot one",
       **named_options)  # fmt: skip
    no("is neither a concept (large, small, hot one, cold)", target="not at all", **named_options)
    no('"large" is at layer 0', target="0/0", query=5, **named_options)
    catalogue.concept("large").at(2).features[0] = 7
    refused('concept "large" has feature 2/7, but the dictionary of layer 2 has 2 features',
            one, dictionaries, PROMPT, error=MismatchError, catalogue=catalogue)  # fmt: skip
    catalogue.concept("large").at(2).features[0] = 0
    refused("belong to model", tiny_model, dictionaries, PROMPT, error=MismatchError)
    catalogue.fingerprint = "another"
    refused('concepts belong to model "planted" with fingerprint another', one, dictionaries,
            PROMPT, error=MismatchError, catalogue=catalogue)  # fmt: skip


@pytest.mark.parametrize("way", ["layer_norm", "constant_norm_rescale"])
def test_dictionaries_that_normalise_tokens_are_refused(one, known_features, way):
    """Their decoder rows are no parts of the stream, whatever the target is.

    Mutation tried: split_paths and split_score without the check (they then give wrong parts that
    still add up).
    """
    whole = known_features(one)
    changed = {m: replace(whole[m], normalize_activations=way) for m in whole.layers}
    dictionaries = DictionarySet(changed, whole.manifest, whole.path)
    exact = ExactModel(one)
    clean = exact.run(one.prompt(PROMPT))
    target = token_target(exact, clean, one.single_token("small"), 8, "small")
    (paths,) = frozen_maps(exact, clean, [target], 1)
    for attempt in (
        lambda: trace(one, dictionaries, PROMPT, "small"),
        lambda: split_paths(clean, paths, dictionaries[1]),
        lambda: split_score(exact, clean, dictionaries[1], (1, 2), 8, 5, [1]),
    ):
        with pytest.raises(InputError, match="layer 1 normalises each token"):
            attempt()


def test_a_negative_activation_is_not_called_inactive(one, known_features):
    """abstopk: u is -3 where the embedding's sign is turned."""
    whole = known_features(one)
    turned = replace(whole[2], architecture="abstopk", k=2, W_enc=-whole[2].W_enc)
    dictionaries = DictionarySet({2: turned}, whole.manifest, whole.path)
    refused("Feature 2/0 is active with a negative value (-3)", one, dictionaries, PROMPT,
            target="2/0", query=5)  # fmt: skip
