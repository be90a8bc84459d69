"""Losses by hand, straight-through gradients, and what the stored form computes."""

import pytest
import torch

from saekit.sae.training.architectures import CLASS_OF, Matryoshka
from saekit.sae.training.config import ARCHITECTURES, LayerConfig
from saekit.sae.training.step import dense_step
from saekit.sae.training.straight_through import jump_relu, step_function

NONE = torch.arange(0)
EYE = torch.eye(2)


def plain(**more):
    return {"W_enc": EYE, "b_enc": torch.zeros(2), "W_dec": EYE, "b_dec": torch.zeros(2), **more}


def loss_of(name, x, p, dead=NONE, sparsity=1.0, **settings):
    kind = CLASS_OF[name](LayerConfig(architecture=name, **{"d_sae": 2, "k": 1, **settings}))
    return kind.loss(torch.tensor(x), p, dead, sparsity)


def test_names():
    assert set(CLASS_OF) == set(ARCHITECTURES)


def test_standard_by_hand():
    """x = (3, -4): v = (3, 0), error (0, -4), L = 16 / 2 + 0.5 * 3 / 2."""
    loss = loss_of("standard", [[3.0, -4.0]], plain(), sparsity=0.5)
    assert loss.total == pytest.approx(8.75)
    assert loss.squared_error == 16
    # rows of W_dec of norm 2 double the penalty and reconstruct (6, 0)
    doubled = loss_of("standard", [[3.0, -4.0]], plain(W_dec=2 * EYE), sparsity=0.5)
    assert doubled.total == pytest.approx((9 + 16) / 2 + 0.5 * 6 / 2)


def test_jumprelu_by_hand():
    """x = (3, 0.4), thresholds 0.5: v = (3, 0), one active; the dead one lacks 0.1."""
    p = plain(threshold=torch.full((2,), 0.5))
    settings = {"bandwidth": 0.4, "aux_coefficient": 0.25}
    loss = loss_of("jumprelu", [[3.0, 0.4]], p, sparsity=2.0, **settings)
    assert loss.values.tolist() == [[3.0, 0.0]]
    assert loss.total == pytest.approx(0.16 / 2 + 2 * 1 / 2)
    with_dead = loss_of("jumprelu", [[3.0, 0.4]], p, torch.tensor([1]), 2.0, **settings)
    assert float(with_dead.total - loss.total) == pytest.approx(0.25 * 0.1 / 2, rel=1e-4)


def test_the_thresholds_gradient_by_hand():
    """Only feature 1 is within half a bandwidth (0.2) of its threshold.

    dL0/dt = -1/0.4; d(v x slope)/dt = -t/0.4 * slope (mutation tried: without the factor t).
    """
    pre = torch.tensor([[3.0, 0.6]], requires_grad=True)
    threshold = torch.tensor([0.5, 0.5], requires_grad=True)
    step_function(pre, threshold, 0.4).sum().backward()
    assert pre.grad is None or not pre.grad.any()
    assert torch.allclose(threshold.grad, torch.tensor([0.0, -2.5]))
    threshold.grad = None
    (7 * jump_relu(pre, threshold, 0.4)).sum().backward()
    assert torch.allclose(threshold.grad, torch.tensor([0.0, -7 * 0.5 / 0.4]))
    assert pre.grad.tolist() == [[7.0, 7.0]]


def test_gated_by_hand():
    """x = (3, -4): gate open at 0 only; m = 3 e^0.5 + 1; the frozen path rebuilds (3, 0)."""
    p = {
        "W_enc": EYE, "W_dec": EYE, "b_dec": torch.zeros(2), "b_gate": torch.zeros(2),
        "r_mag": torch.tensor([0.5, 0.0]), "b_mag": torch.tensor([1.0, 9.0]),
    }  # fmt: skip
    loss = loss_of("gated", [[3.0, -4.0]], p, sparsity=2.0)
    value = 3 * 2.718281828**0.5 + 1
    assert loss.values[0].tolist() == pytest.approx([value, 0.0])
    rebuilt = ((3 - value) ** 2 + 16) / 2
    assert float(loss.total) == pytest.approx(rebuilt + 2 * 3 / 2 + 16 / 2, rel=1e-5)


def test_the_frozen_path_of_gated_does_not_teach_the_decoder():
    kind = CLASS_OF["gated"](LayerConfig(architecture="gated", d_sae=2, k=1))
    p = kind.start(EYE, EYE)
    p["b_mag"] = torch.full((2,), -100.0)  # nothing comes through the magnitudes
    gradients, _ = dense_step(torch.tensor([[3.0, -4.0]]), p, kind, NONE, sparsity=0.0)
    assert not gradients["W_dec"].any()
    assert gradients["b_gate"].tolist() == [0.0, 0.0]  # |3 - 3|: nothing left to explain
    assert gradients["b_dec"].any()


def test_batchtopk_shares_features_out_over_the_batch():
    """Two tokens, k = 1: both features of the first, none of the second."""
    loss = loss_of("batchtopk", [[3.0, 4.0], [1.0, 2.0]], plain())
    assert loss.values.tolist() == [[3.0, 4.0], [0.0, 0.0]]
    assert loss.total == pytest.approx(5 / 4)


def test_matryoshka_by_hand():
    """x = (3, 4), prefixes of 1 and 2 features, k = 2: the mean of 16 / 2 and 0."""
    loss = loss_of("matryoshka", [[3.0, 4.0]], plain(), k=2, prefixes=(0.5,))
    assert loss.total == pytest.approx((16 / 2 + 0) / 2)
    assert loss.squared_error == 0
    kind = Matryoshka(LayerConfig(architecture="matryoshka", d_sae=64))
    assert kind.ends() == [4, 8, 16, 32, 64]


def test_auxk_by_hand():
    """k = 1 takes feature 1; the dead feature 0 then explains the whole error (3, 0)."""
    loss = loss_of("topk", [[3.0, 4.0]], plain(), torch.tensor([0]), aux_k=1, aux_coefficient=0.5)
    assert loss.extra == 0
    shifted = plain(b_enc=torch.tensor([-1.0, 0.0]))  # it gives 2 of 3: (1 / 3)^2 is left
    loss = loss_of("topk", [[3.0, 4.0]], shifted, torch.tensor([0]), aux_k=1, aux_coefficient=0.5)
    assert loss.extra == pytest.approx(1 / 9)
    assert loss.total == pytest.approx(9 / 2 + 0.5 / 9)


def test_auxk_of_nested_dictionaries_counts_once():
    """As above with one prefix more: 16 / 2 and 9 / 2 and the auxiliary part, over the two.

    Mutation tried: the auxiliary part not divided by the number of prefixes (fails here, and the
    sparse step then disagrees with this loss).
    """
    shifted = plain(b_enc=torch.tensor([-1.0, 0.0]))
    loss = loss_of(
        "matryoshka", [[3.0, 4.0]], shifted, torch.tensor([0]), k=1, aux_k=1, aux_coefficient=0.5,
        prefixes=(0.5,),
    )  # fmt: skip
    assert loss.extra == pytest.approx(1 / 9)
    assert loss.total == pytest.approx((25 / 2 + 9 / 2 + 0.5 / 9) / 2)
