"""Encode and decode of one dictionary, with hand-set weights."""

import pytest
import torch

from saekit.errors import InputError
from saekit.sae.dictionary import Dictionary


def hand_made(architecture="topk", **options):
    """Features: +x, +y, -x, and x+y with a bias of -1; decoder rows twice as long."""
    W_enc = torch.tensor([[1.0, 0.0, -1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    settings = {"k": 2, **options} if architecture == "topk" else options
    bias = None if architecture == "gated" else torch.tensor([0.0, 0.0, 0.0, -1.0])
    return Dictionary(
        layer=0,
        architecture=architecture,
        W_enc=W_enc,
        b_enc=bias,
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
    # strictly above the threshold; mutation tried: >=
    assert jump.encode(x).tolist() == [[0, 2, 0, 4]]
    below_zero = hand_made("jumprelu", threshold=torch.full((4,), -9.0))
    assert below_zero.encode(x).tolist() == [[3, 2, 0, 4]]  # mutation tried: no relu
    without = hand_made("standard", apply_b_dec_to_input=False)
    assert without.encode(x).tolist() == [[4, 2, 0, 5]]


def test_abstopk_by_hand():
    """Preactivations (3, 2, -3, 4): the largest by magnitude keep their signs."""
    dictionary = hand_made("abstopk", k=3)
    x = torch.tensor([[4.0, 2.0]])
    assert dictionary.encode(x).tolist() == [[3, 0, -3, 4]]
    values, indices = dictionary.encode_sparse(x)
    assert values[0, 0] == 4
    assert sorted(indices[0].tolist()) == [0, 2, 3]


def test_gated_by_hand():
    """Products (3, 2, -3, 5); gate and magnitude have their own bias, r_mag = ln 2 doubles."""
    dictionary = hand_made(
        "gated",
        b_gate=torch.tensor([-3.0, 0.0, 9.0, 0.0]),
        r_mag=torch.tensor([0.0, 2.0, 0.0, 1.0]).log1p(),  # exp(r_mag) = 1, 3, 1, 2
        b_mag=torch.tensor([5.0, 1.0, 1.0, -12.0]),
    )
    x = torch.tensor([[4.0, 2.0]])
    assert dictionary.preactivations(x).tolist() == [[0, 2, 6, 5]]
    # off at a gate of exactly 0; 2 * 3 + 1; magnitude -3 + 1 < 0; magnitude 10 - 12 < 0
    # mutations tried: gate >= 0; exp(r_mag) on the bias too; b_gate in the magnitude
    assert torch.allclose(dictionary.encode(x), torch.tensor([[0.0, 7, 0, 0]]))
    direction, constant = dictionary.reader(1)
    assert float(x[0] @ direction + constant) == pytest.approx(7)


def test_reader_is_the_affine_function_behind_an_activation():
    x = torch.tensor([4.0, 2.0])
    for dictionary in (hand_made(), hand_made("standard", apply_b_dec_to_input=False)):
        direction, constant = dictionary.reader(3)
        assert float(x @ direction + constant) == float(dictionary.preactivations(x)[3])


GATED = {
    "b_gate": torch.tensor([0.0, -0.5, 0.0, -1.0]),
    "r_mag": torch.tensor([0.1, -0.2, 0.0, 0.3]),
    "b_mag": torch.tensor([0.2, 0.1, -0.1, 0.0]),
}
EVERY_KIND = [
    hand_made(),
    hand_made("abstopk", k=2),
    hand_made("standard"),
    hand_made("jumprelu", threshold=torch.full((4,), 0.5)),
    hand_made("gated", **GATED),
    hand_made("standard", centre_input=True),
    hand_made("standard", normalize_activations="constant_norm_rescale"),
]


@pytest.mark.parametrize("dictionary", EVERY_KIND)
def test_sparse_and_dense_forms_agree(dictionary):
    x = torch.randn(3, 5, 2)
    values, indices = dictionary.encode_sparse(x)
    dense = dictionary.encode(x)
    assert torch.equal(torch.zeros_like(dense).scatter_(-1, indices, values), dense)
    rebuilt = dictionary.decode(dense, x)
    assert torch.allclose(dictionary.decode_sparse(values, indices, x), rebuilt, atol=1e-6)
    assert torch.allclose(dictionary.reconstruct(x), rebuilt, atol=1e-6)


def test_centred_input_gets_its_mean_back_where_the_stream_is_given():
    dictionary = hand_made("standard", centre_input=True)
    features = dictionary.encode(x := torch.tensor([[4.0, 2.0]]))
    centred = dictionary.decode(features)
    assert (dictionary.decode(features, x) - centred).tolist() == [[3, 3]]


def test_a_dictionary_that_normalises_tokens_needs_the_stream_to_decode():
    dictionary = hand_made("standard", normalize_activations="layer_norm")
    with pytest.raises(InputError, match="decoder needs the stream as well"):
        dictionary.decode(torch.zeros(1, 4))
    with pytest.raises(InputError, match="cannot be traced"):
        dictionary.reader(0)


def test_one_threshold_for_all_is_shown_as_what_it_was_trained_as():
    trained = {"training_architecture": "batchtopk"}
    batchtopk = hand_made("jumprelu", threshold=torch.ones(4), metadata=trained)
    assert batchtopk.training_architecture == "batchtopk"
    assert hand_made("standard").training_architecture == "standard"


def test_moving_keeps_everything():
    dictionary = hand_made().to("cpu")
    assert dictionary.k == 2
    assert (dictionary.d_in, dictionary.d_sae) == (2, 4)
