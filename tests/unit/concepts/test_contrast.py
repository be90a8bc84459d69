"""Contrast prompts: questions and statements that differ in nothing but their last sign."""

import numpy as np
import pytest

from saekit.activations import residuals
from saekit.concepts.contrast import halves, largest_activations, score_contrast
from saekit.concepts.definitions import Definition
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage.dictionary_set import DictionarySet

WORDS = (
    "large small old new hot cold fast slow good bad high low "
    "long short rich poor wet dry hard soft"
).split()
POSITIVE = tuple(f'The word "{word}" is here' for word in WORDS)
NEGATIVE = tuple(f"The word {word} is here" for word in WORDS)
QUOTED = Definition("quoted", "contrast", positive=POSITIVE, negative=NEGATIVE)


@pytest.fixture(scope="module")
def planted(tiny_model):
    """Layer 0: feature 5 is the token `"` (its centred embedding), all others random; layer 2:
    random features only."""
    import torch

    generator = torch.Generator().manual_seed(0)
    quote = tiny_model.hf.transformer.wte.weight[tiny_model.vocabulary.index(' "')].detach()
    other = tiny_model.hf.transformer.wte.weight.detach().mean(0)
    dictionaries = {}
    for layer in (0, 2):
        W_enc = torch.randn(32, 16, generator=generator)
        b_enc = torch.full((16,), -2.0)
        if layer == 0:
            W_enc[:, 5] = quote - other
            b_enc[5] = -0.6 * float((quote - other) @ quote)
        W_dec = W_enc.T / W_enc.norm(dim=0)[:, None]
        threshold = torch.zeros(16)
        dictionaries[layer] = Dictionary(
            layer, "jumprelu", W_enc, b_enc, W_dec, torch.zeros(32), threshold=threshold
        )
    return DictionarySet(dictionaries, {"fingerprint": tiny_model.fingerprint}, None)


def test_each_half_has_half_of_each_sign():
    prompts, labels, n_first = halves(QUOTED, np.random.default_rng(0))
    assert sorted(prompts) == sorted(POSITIVE + NEGATIVE)
    assert n_first == 20
    assert labels[:n_first].sum() == labels[n_first:].sum() == 10
    assert [text in POSITIVE for text in prompts] == labels.tolist()
    assert len(np.flatnonzero(np.diff(labels[:n_first]))) > 1  # mixed


def test_a_prompts_value_is_its_largest_activation_without_bos(tiny_model, planted):
    found = largest_activations(tiny_model, planted, list(POSITIVE[:2]))
    ids = tiny_model.prompt(POSITIVE[1])
    assert ids[0] == tiny_model.bos
    expected = planted[2].encode(residuals(tiny_model, ids[None], [2])[0, 0])[1:].amax(0)
    # Mutation tried: with BOS values are up to 1.8 off.
    assert found[2][1] == pytest.approx(expected.numpy(), abs=1e-4)


def test_the_feature_of_the_difference_is_found(tiny_model, planted):
    scores = {score.layer: score for score in score_contrast(tiny_model, planted, QUOTED)}
    assert scores[0].found
    assert scores[0].features == [5]
    assert scores[0].f1 == scores[0].auroc == 1
    assert scores[0].positives == 10
    assert scores[0].baseline_f1 < 1


def test_prompts_that_do_not_differ_are_not_found(tiny_model, planted):
    mixed = POSITIVE[::2] + NEGATIVE[1::2], POSITIVE[1::2] + NEGATIVE[::2]
    same = Definition("nothing", "contrast", positive=mixed[0], negative=mixed[1])
    assert not any(score.found for score in score_contrast(tiny_model, planted, same))
