"""Dynamic scores of planted heads, and the correlation by hand.

Mutations tried by hand, each of which fails here: forced attention on the last position instead of
the source; natural and forced exchanged; b_V left out of z; the target order not repeated.
"""

import numpy as np
import pytest
import torch

from saekit.heads.pairs import token_pairs
from saekit.heads.prompts.dynamic_scores import CARRIERS, carrier_values, dynamic_scores, pearson
from saekit.heads.relations import open_relation
from saekit.model.exact import ExactModel
from tests.unit.heads.planted import COPIER, N_HEADS, N_LAYERS, plant, planted_model, random_model
from tests.unit.heads.words import with_words

CARRIER_WORDS = sorted({word for carrier in CARRIERS for word in carrier.split() if word != "X"})


@pytest.fixture(scope="module")
def copying():
    """The planted model with only its copier L1-H2 (what layer 0 writes would mix positions)."""
    hf = planted_model()
    for layer in range(N_LAYERS):
        for head in range(N_HEADS):
            if (layer, head) != COPIER:
                plant(hf, layer, head, torch.tensor(0.0), torch.tensor(0.0))
    return with_words(hf, CARRIER_WORDS)


def test_carriers_are_the_published_four():
    assert len(CARRIERS) == 4 and all(carrier.count(" X") >= 1 for carrier in CARRIERS)


def test_a_copier_copies_when_its_attention_is_forced(copying):
    """Attention is even over positions, so without force the source is one word of several."""
    exact = ExactModel(copying)
    pairs = token_pairs(copying, open_relation([(t, t) for t in range(40, 100)]))
    static = (np.eye(N_LAYERS, N_HEADS), np.zeros((N_LAYERS, N_HEADS)))
    found = dynamic_scores(copying, exact, pairs, 1, static)
    assert found.forced[COPIER] == 1
    assert found.natural[COPIER] < 1
    mask = np.ones_like(found.forced, dtype=bool)
    mask[COPIER] = False
    assert found.forced[mask].max() == pytest.approx(1 / 120)  # silent heads: k / d_vocab
    assert found.n_pairs == 60
    assert found.correlation["forced_suppression"] is None  # the static side does not vary


def test_values_are_those_of_the_running_model():
    """Row by row against transformers' attention: z of all heads before c_proj, with b_V."""
    hf = random_model(seed=5, n_layers=2, n_heads=2, d_model=16, vocabulary=60)
    model = with_words(hf, CARRIER_WORDS)
    exact = ExactModel(model)
    pairs = token_pairs(model, open_relation([(50, 50), (55, 51)]), min_pairs=1)
    natural, forced = carrier_values(model, exact, pairs)
    assert natural.shape == forced.shape == (2, 2, 8, 8)
    seen = {}
    for layer, block in enumerate(hf.transformer.h):
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.__setitem__(layer, inputs[0][0, -1].clone())
        )
        block.attn.c_attn.register_forward_hook(
            lambda _, __, out, layer=layer: seen.__setitem__((layer, "v"), out[0, :, 32:].clone())
        )
    row = 3  # second pair of the first carrier ...
    row = 2 * 1 + 1  # ... of the second carrier: "The story of X contains"
    ids = [0, *model.tokens("The story of"), 55, *model.tokens("contains")]
    with torch.no_grad():
        hf(torch.tensor([ids]))
    for layer in range(2):
        assert torch.allclose(natural[layer, :, row].flatten(), seen[layer], atol=1e-5)
        assert torch.allclose(forced[layer, :, row].flatten(), seen[layer, "v"][4], atol=1e-5)


def test_pearson_by_hand():
    one = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert pearson(one, 2 * one + 1) == pytest.approx(1)
    assert pearson(one, -one) == pytest.approx(-1)
    assert pearson(one, np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(-1 / np.sqrt(5))
    assert pearson(one, np.ones((2, 2))) is None
