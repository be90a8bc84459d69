"""A model without blocks between layer and logits, so that rises are known by hand."""

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from saekit.activations import residuals
from saekit.concepts.outputs import clamp_concept, passages, usual_maxima
from saekit.features.effects import Clamping
from saekit.sae.dictionary import Dictionary

TOKENS = [7, 9]


@pytest.fixture(scope="module")
def writer(tiny_model):
    """A dictionary of the last layer: feature 0 writes the tokens, 1 their negative, the rest are
    random; no feature is active."""
    W_U, gamma = tiny_model.hf.lm_head.weight.detach(), tiny_model.hf.transformer.ln_f.weight
    direction = gamma.detach() * (W_U[TOKENS].mean(0) - W_U.mean(0))
    direction = direction / direction.norm()
    rows = torch.randn(140, 32, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1] = direction, -direction
    rows = rows / rows.norm(dim=1, keepdim=True)
    return Dictionary(
        3, "jumprelu", torch.zeros(32, 140), torch.zeros(140), rows, torch.zeros(32),
        threshold=torch.ones(140),
    )  # fmt: skip


def test_usual_maxima_by_hand():
    dense = np.zeros((40, 3))
    dense[:11, 0] = np.arange(11)  # ten positive ones, 1 .. 10
    dense[:2, 2] = [4, 2]
    active = csc_array(dense)
    active.eliminate_zeros()
    assert usual_maxima(active, np.array([0, 2])) == pytest.approx([9.1, 3.8])


def test_rises_are_what_the_model_does(tiny_model, writer):
    ids = passages(tiny_model, np.arange(1, 200))
    assert ids.shape == (16, 33)
    assert (ids[:, 0] == tiny_model.bos).all()
    clamping = Clamping(tiny_model, ids)
    found = clamping.rises(writer, [0, 5], np.array([2.0, 3.0]), [TOKENS])[:, 0]
    last = residuals(tiny_model, ids, [3])[0, :, -1]

    def score(x):
        logits = tiny_model.hf.lm_head(tiny_model.hf.transformer.ln_f(x))
        return logits[:, TOKENS].mean(1) - logits.mean(1)

    # Mutation tried: without the subtraction of the vocabulary's mean the rise is 0.01 off.
    for at, (feature, value) in enumerate(((0, 2.0), (5, 3.0))):
        expected = score(last + value * writer.W_dec[feature]) - score(last)
        assert float(found[at]) == pytest.approx(float(expected.mean()), abs=1e-4)


def test_the_writer_beats_random_features_and_its_opposite_does_not(tiny_model, writer):
    rng = np.random.default_rng(0)
    active = csc_array((rng.random((400, 140)) < 0.3) * rng.uniform(1, 2, (400, 140)))
    ids = rng.integers(1, 600, 300)
    clamp = clamp_concept(tiny_model, writer, active, ids, [0, 1], TOKENS, rng)
    assert (clamp.layer, clamp.features, clamp.random) == (3, [0, 1], 100)
    assert clamp.above == [100, 0]
    assert clamp.rises[0] > clamp.random_max > clamp.random_median > clamp.rises[1]


def test_features_that_were_never_active_are_left_out(tiny_model, writer):
    rng = np.random.default_rng(0)
    dense = (rng.random((400, 140)) < 0.3) * rng.uniform(1, 2, (400, 140))
    dense[:, 0] = 0
    clamp = clamp_concept(tiny_model, writer, csc_array(dense), np.arange(90), [0], TOKENS, rng)
    assert (clamp.features, clamp.rises, clamp.above) == ([], [], [])
