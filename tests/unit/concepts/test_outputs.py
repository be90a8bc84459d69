"""Output concepts: direct effects, sums of them, and the search for a set."""

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from saekit.concepts.outputs import OutputView, deviations, direct_effects, score_output_layer
from saekit.sae.dictionary import Dictionary


def test_direct_effect_is_the_change_of_the_centred_logit(tiny_model):
    """Through the final LayerNorm with its scale held at 1, by running it.

    Mutations tried: gamma left out; W_U not centred over the vocabulary.
    """
    d_model, d_sae = tiny_model.d_model, 5
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(d_sae, d_model, generator=generator)
    dictionary = Dictionary(
        layer=3, architecture="topk", k=2, W_enc=rows.T.contiguous(), b_enc=torch.zeros(d_sae),
        W_dec=rows, b_dec=torch.zeros(d_model),
    )  # fmt: skip
    tokens = [7, 9]
    found = direct_effects(tiny_model, dictionary, tokens)
    ln_f = tiny_model.hf.transformer.ln_f
    for feature in range(d_sae):
        centred = rows[feature] - rows[feature].mean()
        with torch.no_grad():
            logits = tiny_model.hf.lm_head(centred * ln_f.weight)
        assert found[feature] == pytest.approx(
            float(logits[tokens].mean() - logits.mean()), rel=1e-4, abs=1e-5
        )


def test_effect_over_sigma_is_the_change_of_the_logit(tiny_model):
    """A stream plus one row: the centred logit changes by w / sigma, if sigma stays the same."""
    generator = torch.Generator().manual_seed(0)
    x = 7 * torch.randn(tiny_model.d_model, generator=generator)
    sigma = deviations(tiny_model, x)
    ln_f = tiny_model.hf.transformer.ln_f
    expected = (x - x.mean()) / sigma * ln_f.weight + ln_f.bias
    assert torch.allclose(ln_f(x), expected, atol=1e-5)


@pytest.fixture
def planted():
    """2,000 positions: the concept holds where the two writers of it sum to 10; either alone,
    and a strong feature that writes nothing of it, are everywhere."""
    rng = np.random.default_rng(1)
    n = 2000
    labels = np.zeros(n, dtype=bool)
    labels[rng.choice(n, 120, replace=False)] = True
    acts = np.zeros((n, 4), dtype=np.float32)
    acts[:, 0] = np.where(labels, 6, np.where(rng.random(n) < 0.2, 6, 0))
    acts[:, 1] = np.where(labels, 4, np.where(acts[:, 0] > 0, 0, 4 * (rng.random(n) < 0.3)))
    acts[:, 2] = 9 * (rng.random(n) < 0.5)
    effects = np.array([1.0, 1.0, 0.0, -1.0])
    # the stream is up to 100 times longer at some positions: only relative to it is 10 reached
    sigma = np.exp(rng.uniform(-2.3, 2.3, n)).astype(np.float32)
    return OutputView(csc_array(acts * sigma[:, None]), n // 2, np.ones(n), effects, sigma), labels


def test_a_sum_is_found_where_no_feature_alone_would_do(planted):
    """Mutation tried: contributions not divided by sigma."""
    view, labels = planted
    score = score_output_layer(view, 12, labels, np.random.default_rng(0))
    assert score.found
    assert sorted(score.features) == [0, 1]
    assert score.f1 == 1.0
    assert score.auroc == 1.0
    assert score.baseline_f1 < 0.5
    # by hand: 6 + 4 is the usual maximum, so the strength there is 1, and 0.6 with the first alone
    by_feature = dict(zip(score.features, score.weights, strict=True))
    assert by_feature == pytest.approx({0: 0.1, 1: 0.1})
    assert 0.6 < score.threshold <= 1
    acts = [6.0, 4.0] if score.features == [0, 1] else [4.0, 6.0]
    assert score.strength(acts, 1.0) >= score.threshold
    assert score.strength([30 * a for a in acts], 30.0) == pytest.approx(score.strength(acts, 1.0))
    assert score.strength(acts, 2.0) < score.threshold


def test_an_absent_concept_is_not_found():
    rng = np.random.default_rng(2)
    acts = rng.random((2000, 6)).astype(np.float32) * (rng.random((2000, 6)) < 0.2)
    labels = rng.random(2000) < 0.03
    view = OutputView(csc_array(acts), 1000, np.ones(2000), np.ones(6), np.ones(2000))
    assert not score_output_layer(view, 3, labels, rng).found
