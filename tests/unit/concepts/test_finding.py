"""The whole search on a tiny random model whose dictionaries hold a feature that was put there."""

from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from saekit.activations import residuals
from saekit.concepts.catalogue import Catalogue, Chain
from saekit.concepts.definitions import BUILT_IN, Definition, forms, resolve
from saekit.concepts.finding import find_concepts
from saekit.concepts.observations import observe
from saekit.concepts.sampling import half_of
from saekit.concepts.spans import chain_spans, prompt_spans
from saekit.errors import InputError, MismatchError
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.text import relational

PROMPT = 'The opposite of "large" is "'
D_SAE, K = 48, 4


def documents():
    return relational.documents(seed=77)


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with a strong direction of its own added to the embedding of brackets."""
    hf = deepcopy(tiny_model.hf)
    brackets = resolve(BUILT_IN[2], tiny_model.vocabulary)
    with torch.no_grad():
        hf.transformer.wte.weight[brackets] += 12 * planted_direction()
    return replace(tiny_model, hf=hf, id="planted")


def planted_direction():
    direction = torch.randn(32, generator=torch.Generator().manual_seed(9))
    return direction / direction.norm()


@pytest.fixture(scope="module")
def planted(model):
    """Random features at layers 0-2, where feature 11 reads the planted direction; none at 3."""
    text = islice(relational.documents(seed=5), 60)
    rows = [torch.tensor([model.bos, *model.tokens(document)][:64]) for document in text]
    streams = torch.cat([residuals(model, row[None])[:, 0, 1:] for row in rows], 1)
    generator = torch.Generator().manual_seed(0)
    dictionaries = {}
    for layer, x in enumerate(streams):
        b_dec = x.mean(0)
        W_enc = torch.randn(x.shape[1], D_SAE, generator=generator)
        across = W_enc - planted_direction()[:, None] * (planted_direction() @ W_enc)
        W_enc = across / ((x - b_dec) @ across).std(0)
        W_enc[:, 11] = planted_direction() * 2  # above the random features when it is there
        b_enc = torch.zeros(D_SAE)
        b_enc[11] = -0.8 * float(((x - b_dec) @ planted_direction()).max())
        W_dec = W_enc.T / W_enc.norm(dim=0)[:, None]
        if layer == 3:  # the same four features at every position: they tell nothing apart
            W_enc, b_enc = torch.zeros_like(W_enc), torch.arange(D_SAE).float()
        dictionaries[layer] = Dictionary(layer, "topk", W_enc, b_enc, W_dec, b_dec, k=K)
    manifest = {"fingerprint": model.fingerprint, "model": "planted", "training": {"context": 64}}
    return DictionarySet(dictionaries, manifest, Path("planted"))


@pytest.fixture(scope="module")
def catalogue(model, planted):
    absent = Definition("river", "input", (" the",))
    words = relational.relation_words()[0][:20]
    quoted = Definition(
        "quoted", "contrast",
        positive=tuple(f'the word "{word}" is' for word in words),
        negative=tuple(f"the word {word} is" for word in words),
    )  # fmt: skip
    return find_concepts(model, planted, documents(), (BUILT_IN[2], absent, quoted), tokens=4000)


def test_the_planted_feature_is_found_where_it_is(catalogue):
    brackets = catalogue.concept("brackets")
    assert brackets.found_layers == [0, 1, 2]
    assert brackets.span == (0, 2)
    assert all(11 in brackets.at(layer).features for layer in (0, 1, 2))
    assert brackets.best.f1 > 0.9
    assert all(score.f1 > score.baseline_f1 for score in brackets.layers if score.found)
    assert not brackets.at(3).found
    assert set(brackets.chain) <= {"0/11", "1/11", "2/11"}


def test_contrast_prompts_find_what_they_differ_in(catalogue):
    quoted = catalogue.concept("quoted")
    assert quoted.tokens == []
    assert quoted.found_layers[:3] == [0, 1, 2]
    assert quoted.at(0).features == [11]
    assert quoted.at(0).positives == 10  # of the half that chose nothing


def test_an_absent_concept_is_said_to_be_absent(catalogue):
    river = catalogue.concept("river")
    assert river.span is None
    assert river.found_layers == []
    assert all(score.positives > 10 for score in river.layers)  # it is there in the text
    assert len(river.layers) == 4


def test_the_catalogue_says_what_it_was_made_from(catalogue, model, tmp_path):
    assert catalogue.fingerprint == model.fingerprint
    assert catalogue.tokens >= 4000
    assert catalogue.links["target_fdr"] == 0.05
    assert catalogue.concept("brackets").tokens == [
        t for t in model.vocabulary if any(s in '()[]{}"' for s in t)
    ]
    catalogue.save(tmp_path / "concepts.json")
    assert Catalogue.load(tmp_path / "concepts.json") == catalogue


def test_spans_on_a_prompt(model, planted, catalogue):
    catalogue = catalogue.only("brackets")
    spans = [s for s in prompt_spans(model, planted, catalogue, PROMPT) if s.last > s.first]
    assert [(s.name, s.position) for s in spans] == [("brackets", p) for p in (4, 6, 8)]
    for span in spans:
        assert (span.first, span.last) == (0, 2)
        assert "0/11" in span.features
        # the activation that is reported is the dictionary's own
        ids = model.prompt(PROMPT)
        x = residuals(model, ids[None], [0])[0, 0, span.position]
        row = next(row for row in span.evidence if row["feature"] == "0/11")
        assert row["activation"] == pytest.approx(float(planted[0].encode(x)[11]), rel=1e-3)


def test_chains_have_spans_of_their_own(model, planted, catalogue):
    ids = model.prompt(PROMPT)
    values = [
        float(planted[layer].encode(residuals(model, ids[None], [layer])[0, 0, 8])[11])
        for layer in (0, 1, 2)
    ]
    assert min(values) > 0
    # at position 8, layer 2 is just below and layer 1 just above 5% of what is usual
    usual = [values[0], values[1] / 0.051, values[2] / 0.049]
    chain = Chain(["0/11", "1/11", "2/11"], usual)
    brackets = replace(catalogue.concept("brackets"), chains=[chain, Chain(["3/0"], [1e9])])
    spans = chain_spans(model, planted, replace(catalogue, concepts=[brackets]), PROMPT)
    assert {span.position for span in spans} == {4, 6, 8}
    (span,) = [span for span in spans if span.position == 8]
    # Mutation tried: without the 5% the span is (0, 2).
    assert (span.name, span.first, span.last) == ("brackets", 0, 1)
    assert span.features == ["0/11", "1/11"]
    assert span.dictionary_span == (0, 2)


def test_positions_do_not_depend_on_bos(model, planted, catalogue):
    without = replace(model, prepend_bos=False)
    positions = {s.position for s in prompt_spans(without, planted, catalogue, PROMPT)}
    assert {4, 6, 8} <= positions
    assert max(positions) == 8


def test_output_concepts_read_the_models_own_probabilities(model, planted):
    ids = resolve(BUILT_IN[3], model.vocabulary)
    seen = observe(model, planted, documents(), {"small": ids}, tokens=600)
    # position 0 is the first word of the first row of the first half
    first = next(d for d in documents() if half_of(d) == 0)
    row = torch.tensor([[model.bos, *model.tokens(first)[:5]]])
    logits = model.hf(row).logits[0].softmax(-1)
    assert seen.ids[:5].tolist() == row[0, 1:].tolist()
    expected = logits[1:, ids].sum(-1).detach().numpy()
    assert seen.probabilities["small"][:5] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    strict = replace(BUILT_IN[3], probability=float(np.median(seen.probabilities["small"])))
    assert seen.labels(strict, ids).mean() == pytest.approx(0.5, abs=0.02)


def test_observations_are_the_dictionaries_own_activations(model, planted):
    seen = observe(model, planted, documents(), {}, tokens=600)
    assert (seen.ids != model.bos).all()
    assert seen.layers[3].shape == (len(seen.ids), D_SAE)
    assert 300 <= seen.n_first < len(seen.ids)
    first = next(d for d in documents() if half_of(d) == 0)
    row = torch.tensor([[model.bos, *model.tokens(first)[:5]]])
    for layer in planted.layers:
        expected = planted[layer].encode(residuals(model, row, [layer])[0, 0, 1:])
        assert seen.layers[layer][:5].toarray() == pytest.approx(expected.numpy(), abs=1e-4)


def test_rare_words_are_read_often_and_weights_undo_it(model, planted):
    ids = resolve(Definition("old", "input", forms("old")), model.vocabulary)
    text = list(islice(relational.documents(seed=77, sentences=(1, 1)), 4000))
    seen = observe(model, planted, text, {}, words=["old"], tokens=6000)
    natural = np.isin([i for row in model.encode_batch(text) for i in row], ids).mean()
    here = np.isin(seen.ids, ids)
    assert here.mean() > 2 * natural
    assert np.average(here, weights=seen.weights) == pytest.approx(natural, rel=0.25)


def test_too_little_text_is_refused(model, planted):
    with pytest.raises(InputError, match="too short"):
        find_concepts(model, planted, ["one line"], tokens=100)

    def endless():
        while True:
            yield "The same sentence again and again."

    with pytest.raises(InputError, match="too short"):
        find_concepts(model, planted, endless(), tokens=100)


def test_two_concepts_of_one_name_are_refused(model, planted):
    with pytest.raises(InputError, match='two concepts named "large"'):
        find_concepts(model, planted, documents(), (BUILT_IN[1], BUILT_IN[1]))


def test_concepts_of_another_model_are_refused(model, planted, catalogue):
    other = replace(catalogue, fingerprint="0" * 64)
    with pytest.raises(MismatchError, match="0000"):
        prompt_spans(model, planted, other, PROMPT)
