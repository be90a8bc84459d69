"""Evaluation: exact answers for dictionaries whose effect is known."""

from itertools import islice

import pytest
import torch

from saekit.activations import context_rows, residuals
from saekit.errors import InputError
from saekit.sae.dictionary import Dictionary
from saekit.sae.evaluation import density_histogram, evaluate
from saekit.sae.folding import fold_centring
from saekit.text import relational


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3), 60))


def linear(layer, factor):
    """A "standard" dictionary of +-unit features: decodes to `factor` times its input."""
    eye = torch.eye(32)
    return Dictionary(
        layer=layer,
        architecture="standard",
        W_enc=torch.cat([eye, -eye], 1),
        b_enc=torch.zeros(64),
        W_dec=factor * torch.cat([eye, -eye]),
        b_dec=torch.zeros(32),
    )


def evaluated(model, documents, tokens):
    """The rows that `evaluate` takes for this many tokens."""
    rows, words = [], 0
    for row in context_rows(model, documents, 32):
        rows.append(torch.from_numpy(row).long())
        words += int((row != model.bos).sum())
        if words >= tokens:
            return torch.stack(rows)
    raise AssertionError("short text")


def test_identity_scores_one_and_zero_scores_zero(tiny_model, documents):
    perfect = evaluate(tiny_model, [linear(layer, 1.0) for layer in range(4)], documents, 1000, 32)
    nothing = evaluate(tiny_model, [linear(layer, 0.0) for layer in range(4)], documents, 1000, 32)
    for layer in range(4):
        good, bad = perfect[layer], nothing[layer]
        assert good["layer"] == layer
        assert good["tokens"] >= 1000
        assert good["ce_loss_score"] == pytest.approx(1, abs=1e-5)
        assert good["kl_div_score"] == pytest.approx(1, abs=1e-5)
        assert good["fvu"] == pytest.approx(0, abs=1e-10)
        assert good["cossim"] == pytest.approx(1)
        assert good["l2_ratio"] == pytest.approx(1)
        assert good["relative_reconstruction_bias"] == pytest.approx(1)
        assert good["l0"] == pytest.approx(32, abs=0.01)
        assert good["dead_share"] < 0.05
        # mutation tried: zeroing BOS positions in the ablation only
        assert bad["ce_loss_score"] == pytest.approx(0, abs=1e-6)
        assert bad["l2_norm_out"] == bad["l2_ratio"] == 0
        assert bad["fvu"] >= 1  # the mean alone gives 1
        assert bad["ce_loss_without_sae"] == pytest.approx(good["ce_loss_with_sae"], abs=1e-5)


def test_losses_are_those_of_hugging_face(tiny_model, documents):
    found = evaluate(tiny_model, [linear(2, 0.5)], documents, 200, 32)[0]
    rows = context_rows(tiny_model, documents, 32)
    total = predictions = tokens = 0
    while tokens < 200:
        ids = torch.stack([torch.from_numpy(row) for row in islice(rows, 1)]).long()
        with torch.no_grad():
            losses = tiny_model.hf(ids).logits[:, :-1].log_softmax(-1)
        losses = -losses.gather(2, ids[:, 1:, None])[..., 0]
        # positions whose own and whose next token are words
        keep = (ids[:, :-1] != tiny_model.bos) & (ids[:, 1:] != tiny_model.bos)
        total, predictions = total + losses[keep].sum().item(), predictions + int(keep.sum())
        tokens += int((ids != tiny_model.bos).sum())
    assert found["ce_loss_without_sae"] == pytest.approx(total / predictions, rel=1e-5)
    assert found["tokens"] == tokens


def test_splice_goes_in_at_its_layer_and_leaves_bos(tiny_model, documents):
    """CE with half the stream, by a hook on the Hugging Face model."""
    found = evaluate(tiny_model, [linear(1, 0.5)], documents, 200, 32)[0]
    ids = evaluated(tiny_model, documents, 200)
    words = ids != tiny_model.bos

    def halve(module, inputs):
        return (torch.where(words[..., None], inputs[0] / 2, inputs[0]), *inputs[1:])

    handle = tiny_model.hf.transformer.h[1].register_forward_pre_hook(halve)
    with torch.no_grad():
        losses = tiny_model.hf(ids).logits[:, :-1].log_softmax(-1)
    handle.remove()
    keep = words[:, :-1] & words[:, 1:]
    loss = -losses.gather(2, ids[:, 1:, None])[..., 0][keep].mean()
    assert found["ce_loss_with_sae"] == pytest.approx(loss.item(), rel=1e-5)


def test_reconstruction_figures_by_hand(tiny_model, documents):
    """Half of each activation: figures from the raw stream."""
    found = evaluate(tiny_model, [linear(3, 0.5)], documents, 200, 32)[0]
    ids = evaluated(tiny_model, documents, 200)
    x = residuals(tiny_model, ids, [3])[0][ids != tiny_model.bos].double()
    mse = (x / 2).square().sum(1).mean().item()
    variance = (x - x.mean(0)).square().sum(1).mean().item()
    assert found["mse"] == pytest.approx(mse, rel=1e-5)
    assert found["explained_variance"] == pytest.approx(1 - mse / variance, rel=1e-4, abs=1e-5)
    assert found["l2_norm_in"] == pytest.approx(x.norm(dim=1).mean().item(), rel=1e-5)
    assert found["l2_ratio"] == pytest.approx(0.5)
    assert found["cossim"] == pytest.approx(1)
    assert found["relative_reconstruction_bias"] == pytest.approx(0.5)
    assert found["l1"] == pytest.approx(x.abs().sum(1).mean().item(), rel=1e-5)


def test_features_that_never_fire_are_dead(tiny_model, documents):
    dictionary = linear(0, 1.0)
    dictionary.b_enc[:16] = -1e6
    found = evaluate(tiny_model, [dictionary], documents, 200, 32)[0]
    assert found["dead_share"] == 0.25


def test_short_text(tiny_model, documents):
    found = evaluate(tiny_model, [linear(0, 1.0)], documents[:3], 10_000, 16)[0]
    assert 0 < found["tokens"] < 10_000
    with pytest.raises(InputError, match="shorter than one context"):
        evaluate(tiny_model, [linear(0, 1.0)], ["short"], 100, 32)


def kinds_of_rows(model, documents):
    """Rows of one document, rows of several, and the text of both."""
    ids = evaluated(model, documents, 1500)
    alone = (ids == model.bos).sum(1) == 1
    assert 3 <= alone.sum() < len(ids)
    return ids, alone


@pytest.mark.parametrize("layer", [0, 2])
def test_the_zero_ablation_is_that_of_each_row_by_itself(tiny_model, documents, layer):
    """Rows that are alike are run once, over several passes; by a hook every row is run.

    Mutations tried: rows with a second BOS counted as alike; positions of the remembered row off
    by one; BOS set to zero.
    """
    ids, _ = kinds_of_rows(tiny_model, documents)
    words = ids != tiny_model.bos
    found = evaluate(tiny_model, [linear(layer, 0.5)], documents, 1500, 32)[0]

    def to_zero(module, inputs):
        return (inputs[0] * ~words[..., None], *inputs[1:])

    with torch.no_grad():
        clean = tiny_model.hf(ids).logits.log_softmax(-1)[:, :-1]
        handle = tiny_model.hf.transformer.h[layer].register_forward_pre_hook(to_zero)
        changed = tiny_model.hf(ids).logits.log_softmax(-1)[:, :-1]
        handle.remove()
    keep = words[:, :-1] & words[:, 1:]
    ce = -changed.gather(2, ids[:, 1:, None])[..., 0][keep].mean()
    kl = (clean.exp() * (clean - changed)).sum(-1)[keep].mean()
    assert found["ce_loss_with_ablation"] == pytest.approx(ce.item(), rel=1e-5)
    assert found["kl_div_with_ablation"] == pytest.approx(kl.item(), rel=1e-5)


def test_density_histogram_by_hand():
    rate = torch.tensor([0.0, 0.0, 1e-9, 1e-6, 0.02, 0.04, 0.5, 1.0])
    found = density_histogram(rate)
    assert found["never"] == 2
    assert sum(found["features"]) == 6
    assert found["log10_rate"][0] == -6 and found["log10_rate"][-1] == 0
    # bins of half a decade: 1e-9 and 1e-6 in the first; log10 0.02 = -1.7, 0.04 = -1.4
    assert found["features"] == [2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 2]


def test_passes_do_not_change_the_figures(tiny_model, documents, monkeypatch):
    from saekit.sae import evaluation

    dictionaries = [linear(1, 0.5)]
    (one,) = evaluate(tiny_model, dictionaries, documents, 1500, 32)
    monkeypatch.setattr(evaluation, "_PASS_TOKENS", 64)
    (many,) = evaluate(tiny_model, dictionaries, documents, 1500, 32)
    del one["explained_variance_legacy"], many["explained_variance_legacy"]  # by definition
    assert one.pop("density_histogram") == many.pop("density_histogram")
    assert one.keys() == many.keys()
    for name, value in one.items():
        same = value == many[name] if isinstance(value, str) else None
        assert same or value == pytest.approx(many[name], rel=1e-5), name


def test_a_centred_dictionary_is_judged_on_the_uncentred_stream(tiny_model, documents):
    """+-unit features of the centred stream: the mean comes back, so nothing is lost."""
    found = evaluate(tiny_model, [fold_centring(linear(1, 1.0))], documents, 200, 32)[0]
    assert found["fvu"] == pytest.approx(0, abs=1e-9)
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-4)
