"""The measures of behaviour, on a model whose answers are known."""

import math

import pytest
import torch

from saekit.model.pretraining.behaviours import (
    answers,
    loss_per_token,
    measure_behaviours,
    next_token_logits,
)


@pytest.fixture
def always_small(tiny_model):
    """The tiny model with its stream zeroed and its output bias-free: every logit is equal."""
    saved = {n: p.detach().clone() for n, p in tiny_model.hf.named_parameters()}
    with torch.no_grad():
        tiny_model.hf.transformer.ln_f.weight.zero_()
        tiny_model.hf.transformer.ln_f.bias.zero_()
    yield tiny_model
    with torch.no_grad():
        for name, parameter in tiny_model.hf.named_parameters():
            parameter.copy_(saved[name])


def test_padded_batches_equal_single_prompts(tiny_model):
    """Mutation tried: taking position -1 of the padded row instead of each row's last token."""
    prompts = ["The word", "The opposite of the word that was read is", "a"]
    together = next_token_logits(tiny_model, prompts, batch=2)
    for prompt, row in zip(prompts, together, strict=True):
        alone = tiny_model.hf(tiny_model.prompt(prompt)[None]).logits[0, -1].detach()
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


def test_equal_logits_cost_the_logarithm_of_the_vocabulary(always_small):
    loss = loss_per_token(always_small, ["The word is a word."] * 60, tokens=500, context=32)
    assert loss == pytest.approx(math.log(always_small.d_vocab), rel=1e-5)


def test_predictions_of_bos_are_not_counted(tiny_model):
    """By hand: one row of 16 with BOS inside; the mean over the targets that are not BOS.

    Mutation tried: dropping the `keep` mask.
    """
    bos, word = tiny_model.bos, tiny_model.tokens(" word")
    documents = [" word" * 5] * 40
    loss = loss_per_token(tiny_model, documents, tokens=16, context=16)
    document = word * 5
    row = torch.tensor(([bos, *document] * 16)[:16])
    logits = tiny_model.hf(row[None, :-1]).logits[0].detach()
    every = -logits.log_softmax(-1).gather(1, row[1:, None])[:, 0]
    assert (row[1:] == bos).any()
    assert loss == pytest.approx(every[row[1:] != bos].mean().item(), rel=1e-4)


def test_a_random_model_has_none_of_the_behaviours(tiny_model):
    figures = measure_behaviours(tiny_model)
    assert figures["n_opposites"] == figures["n_copies"] == 300
    for name in ("opposites", "opposites_held_out", "copies", "names_held_out", "brackets"):
        assert figures[name] <= 0.2, name


def test_answers_are_texts_of_tokens(tiny_model):
    given = answers(tiny_model, ["The word", "It is"])
    assert len(given) == 2
    assert all(answer in tiny_model.vocabulary for answer in given)
