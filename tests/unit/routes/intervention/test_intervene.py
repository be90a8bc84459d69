"""Interventions on a planted circuit, where every number is known by hand.

The head L1-H2 moves u from "large" to every later position as 8 v: at position 8 the stream is
8 (1/9) (x(5) . u) / sigma(5) along v, and sigma(5)^2 = |x(5)|^2 / 32 + 1e-5.

Mutations tried by hand, each of which fails here: features of both runs swapped instead of those
of one; the other word's features written without taking this word's away; the span's layers not
used; BOS counted in positions; `share_below` counted the other way round.
"""

from types import SimpleNamespace

import jsonschema
import pytest
import torch

from saekit.documents import json_schema
from saekit.errors import InputError
from saekit.model.exact import ExactModel
from saekit.report.terminal.outcome_text import render_outcomes
from saekit.routes.intervention.changes import Change, differing, parse_change
from saekit.routes.intervention.intervene import intervene
from saekit.routes.intervention.outcomes import Outcome
from saekit.sae.storage.dictionary_set import DictionarySet

PROMPT = 'The opposite of "large" is "'
OTHER = 'The opposite of "small" is "'


@pytest.fixture(scope="module")
def one(planted):
    return planted({(1, 2): 8.0})


def span(first: int, last: int) -> SimpleNamespace:
    names = [f"{layer}/0" for layer in range(first, last + 1)]
    return SimpleNamespace(name="large", kind="input", position=5, first=first, last=last,
                           features=names, evidence=None)  # fmt: skip


def moved(model, word: str, u_of_word: float, u_at_the_head: float) -> float:
    x = model.hf.transformer.wte.weight[model.single_token(word)].detach()
    size = float(x.square().sum()) - u_of_word**2 + u_at_the_head**2
    return 8 / 9 * u_at_the_head / (size / 32 + 1e-5) ** 0.5


def changed(one, sharp_features, named, *changes, prompt=PROMPT, spans=None, **options):
    options = {"catalogue": named(one), "dtype": torch.float64, **options}
    spans = [span(0, 3)] if spans is None else spans
    return intervene(one, sharp_features(one), prompt, changes, spans=spans, **options)


@pytest.mark.parametrize("value", [0.0, 1.0, 6.0])
def test_a_concept_is_held_at_a_value(one, sharp_features, named, value):
    (outcome,) = changed(one, sharp_features, named, f"large@5={value}", target="3/1")
    assert outcome.target_before == pytest.approx(moved(one, "large", 3, 3), rel=1e-5)
    assert outcome.target_after == pytest.approx(moved(one, "large", 3, value), rel=1e-5, abs=1e-6)
    assert (outcome.positions, outcome.layers) == ([5], [0, 3])
    assert outcome.features == ["0/0", "1/0", "2/0", "3/0"]
    assert outcome.before[0].token == "small"
    assert outcome.ceiling is None


def test_only_the_span_is_held(one, sharp_features, named):
    """Above the head that reads it, the concept no longer matters."""
    (outcome,) = changed(one, sharp_features, named, "large@5=0", spans=[span(2, 3)], target="3/1")
    assert outcome.target_after == pytest.approx(outcome.target_before)


def test_a_swap_takes_one_word_away(one, sharp_features, named):
    (outcome,) = changed(one, sharp_features, named, "large@5->small", target="3/1")
    assert outcome.target_after == pytest.approx(0, abs=1e-6)
    assert outcome.layers == [0, 3]  # of the span, not the lower half
    even = pytest.approx(1 / one.d_vocab, rel=1e-4)  # nothing is said any more
    assert outcome.before_token == outcome.after[0].probability == even
    assert outcome.ceiling[0].probability == even
    assert outcome.before[0].probability > 5 / one.d_vocab


def test_a_swap_puts_the_other_word_there(one, sharp_features, named):
    """`small` is no concept: layers 0 and 1 of 3 (the lower half) are swapped."""
    (outcome,) = changed(one, sharp_features, named, "small@5->large", prompt=OTHER, spans=[],
                         target="small", catalogue=None)  # fmt: skip
    assert outcome.layers == [0, 1]
    assert outcome.features == ["0/0", "1/0"]
    v = moved(one, "small", 0, 3)
    assert outcome.after[0].token == "small"  # what the planted model says of "large"
    x = one.hf.transformer.wte.weight[one.tokens(OTHER)[-1]].detach()
    deviation = ((float(x.square().sum()) + v * v) / 32 + 1e-5) ** 0.5
    mean_logit = v / deviation / one.d_vocab  # only one row of the unembedding is not 0 along v
    logits = one.hf.lm_head.weight.detach() @ x / deviation
    rest = float(logits[one.single_token("small")] - logits.mean())
    assert outcome.target_after == pytest.approx(v / deviation - mean_logit + rest, rel=1e-4)


def test_features_that_both_words_have_stay(tiny_model, random_dictionaries):
    exact = ExactModel(tiny_model)
    clean, other = (exact.run(tiny_model.prompt(prompt)) for prompt in (PROMPT, OTHER))
    mine, theirs = (random_dictionaries[1].encode(run.resid[1, 5]) for run in (clean, other))
    clamp = differing(random_dictionaries, clean, other, 1, 5)
    found = set(clamp.features.tolist())
    both = ((mine != 0) & (theirs != 0)).nonzero().flatten().tolist()
    only = ((mine != 0) != (theirs != 0)).nonzero().flatten().tolist()
    assert both and found == set(only)
    assert torch.equal(clamp.values, theirs[clamp.features])


def test_random_features_do_nothing_to_a_planted_circuit(one, sharp_features, named):
    """The only other feature is v, which no head reads."""
    (outcome,) = changed(one, sharp_features, named, "large@5=0", target="3/1", spans=[span(0, 1)])
    assert outcome.random.n == 20
    assert outcome.random.share_below == outcome.random.same_top == 1
    assert outcome.random.median_target == pytest.approx(moved(one, "large", 3, 3), rel=0.3)


def test_several_changes_come_alone_and_together(one, sharp_features, named):
    found = changed(one, sharp_features, named, "large@5=1", "3/1@8=0.5", target="3/1")
    assert [o.change for o in found] == ["large@5=1", "3/1@8=0.5", "large@5=1 and 3/1@8=0.5"]
    assert found[1].target_after == found[2].target_after == pytest.approx(0.5, rel=1e-5)
    assert found[2].positions == [5, 8]


def test_the_text_and_the_schema(one, sharp_features, named):
    found = changed(one, sharp_features, named, "large@5=0", "large@5->small", random_writes=3)[:2]
    text = render_outcomes(found)
    shown = ["large@5=0", "4 features at position 5, layer 0-3", "next token before", "ceiling"]
    for words in (*shown, "3 random writes", f"'{found[0].after[0].token}'"):
        assert words in text
    for outcome in found:
        jsonschema.validate(outcome.to_dict(), json_schema(Outcome))


def test_changes_are_read_from_words():
    assert parse_change("large@5=0") == Change("large@5=0", "large", 5, value=0.0)
    assert parse_change(" 8/12 @ 3 = -1.5e1 ").value == -15
    swap = parse_change("a hot one@12->very cold")
    assert (swap.name, swap.position, swap.word) == ("a hot one", 12, "very cold")


def refused(sentence, *args, **options):
    with pytest.raises(InputError) as caught:
        changed(*args, **options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_swap_needs_a_dictionary_where_words_are(one, sharp_features):
    """Mutation tried: the layers not looked at before they are named (an IndexError)."""
    whole = sharp_features(one)
    upper = DictionarySet({m: whole[m] for m in (2, 3)}, whole.manifest, whole.path)
    with pytest.raises(InputError, match="below 1.5, and there are dictionaries for layers 2, 3"):
        intervene(one, upper, OTHER, ["small@5->large"], "3/1", spans=[])


def test_bad_changes_are_one_sentence(one, sharp_features, named):
    def no(sentence, *changes, **options):
        refused(sentence, one, sharp_features, named, *changes, **options)

    for text in ("large", "large@5", "large@=0", "@5=0", "large@5=x", "large@5->"):
        no("is no intervention: write large@5=0", text)
    no("position 9 is not among 1 to 8", "large@9=0")
    no("position 0 is not among 1 to 8", "large@0->hot")
    no("position 8 is not among 1 to 7", "3/1@8=0", query=7, target="small")
    no('the concept "large" is not active at position 4; it is active at position 5', "large@4=0")
    no('the concept "cold" is not active at position 5; nor anywhere', "cold@5=0")
    no('there is no concept "huge" (large, small, hot one, cold)', "huge@5=0")
    no("Feature 2/9 does not exist", "2/9@5=0")
    no("has no dictionary for layer 7", "7/1@5=0")
    no('position 5 is "large", and no concept "hot" is active there', "hot@5->small")
    no('"is" is at position 7', "is@5->small")
    no("too large a value: the model's stream overflows", "large@5=1e999")
    no("is not one token of planted", "large@5->unbelievably")
    no("position 5 is that word already", "large@5->large")
    no("random_writes must be at least 0", "large@5=0", random_writes=-1)
    no("Query position 12 does not exist", "large@5=0", query=12)
    no("tell the two words apart at none of the layers 0 to 1", "of@3->is", spans=[])
