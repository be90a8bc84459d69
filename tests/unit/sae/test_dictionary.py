"""Encode and decode of one dictionary, with hand-set weights."""

import pytest
import torch

from saekit.sae.dictionary import Dictionary


def hand_made(architecture="topk", **options):
    """Features: +x, +y, -x, and x+y with a bias of -1; decoder rows twice as long."""
    W_enc = torch.tensor([[1.0, 0.0, -1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    settings = {"k": 2, **options} if architecture == "topk" else options
    return Dictionary(
        layer=0,
        architecture=architecture,
        W_enc=W_enc,
        b_enc=torch.tensor([0.0, 0.0, 0.0, -1.0]),
        W_dec=2 * W_enc.T.contiguous(),
        b_dec=torch.tensor([1.0, 0.0]),
        **settings,
    )


def test_topk_by_hand():
    dictionary = hand_made()
    x = torch.tensor([[4.0, 2.0], [0.0, -2.0]])
    # minus b_dec: (3, 2) and (-1, -2)
    pre = [[3, 2, -3, 4], [-1, -2, 1, -4]]
    assert dictionary.preactivations(x).tolist() == pre
    # the second token has one positive preactivation; mutation tried: no relu after the choice
    assert dictionary.encode(x).tolist() == [[3, 0, 0, 4], [0, 0, 1, 0]]
    assert dictionary.decode(dictionary.encode(x)).tolist() == [[15, 8], [-1, 0]]
    values, indices = dictionary.encode_sparse(x)
    assert values.tolist() == [[4, 3], [1, 0]]
    assert indices.tolist() == [[3, 0], [2, 0]]


def test_standard_and_jumprelu_by_hand():
    x = torch.tensor([[4.0, 2.0]])
    assert hand_made("standard").encode(x).tolist() == [[3, 2, 0, 4]]
    jump = hand_made("jumprelu", threshold=torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert jump.encode(x).tolist() == [[0, 2, 0, 4]]  # strictly above the threshold
    without = hand_made("standard", apply_b_dec_to_input=False)
    assert without.encode(x).tolist() == [[4, 2, 0, 5]]


@pytest.mark.parametrize(
    "dictionary",
    [hand_made(), hand_made("standard"), hand_made("jumprelu", threshold=torch.full((4,), 0.5))],
)
def test_sparse_and_dense_forms_agree(dictionary):
    x = torch.randn(3, 5, 2)
    values, indices = dictionary.encode_sparse(x)
    dense = dictionary.encode(x)
    assert torch.equal(torch.zeros_like(dense).scatter_(-1, indices, values), dense)
    assert torch.allclose(
        dictionary.decode_sparse(values, indices), dictionary.decode(dense), atol=1e-6
    )


def test_moving_keeps_everything():
    dictionary = hand_made().to("cpu")
    assert dictionary.k == 2
    assert (dictionary.d_in, dictionary.d_sae) == (2, 4)
