"""Folding: the same reconstruction from weights that hold what was done at run time."""

from dataclasses import replace

import pytest
import torch

from saekit.errors import InputError
from saekit.sae.folding import fold_centring, fold_decoder_norm
from tests.unit.sae.samples import KINDS, random_dictionary

UNTIED = ["standard", "jumprelu", "gated"]  # the choice of features is made per feature


def stream(d_in=8):
    return torch.randn(40, d_in, generator=torch.Generator().manual_seed(9)) + 3


@pytest.mark.parametrize("kind", UNTIED)
def test_unit_decoder_rows_give_the_same_reconstruction(kind):
    dictionary = random_dictionary(kind)
    folded = fold_decoder_norm(dictionary)
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(24))
    # mutations tried: threshold left as it was; r_mag scaled too; W_enc divided
    assert torch.allclose(folded.reconstruct(stream()), dictionary.reconstruct(stream()), atol=1e-4)
    lengths = dictionary.encode(stream()) * dictionary.W_dec.norm(dim=1)
    assert torch.allclose(folded.encode(stream()), lengths, atol=1e-4)


def test_topk_then_chooses_by_length():
    dictionary = random_dictionary("topk")
    dictionary.W_dec[3] *= 100
    folded = fold_decoder_norm(dictionary)
    lengths = dictionary.preactivations(stream()) * dictionary.W_dec.norm(dim=1)
    assert torch.allclose(folded.preactivations(stream()), lengths, rtol=1e-4, atol=1e-3)


def test_a_row_of_zeros_stays_zero():
    dictionary = random_dictionary("standard")
    dictionary.W_dec[5] = 0
    folded = fold_decoder_norm(dictionary)
    assert folded.W_dec[5].abs().max() == 0
    assert torch.isfinite(folded.reconstruct(stream())).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subtracts", [True, False])
def test_centring_moves_from_the_stream_into_the_encoder(kind, subtracts):
    dictionary = replace(random_dictionary(kind), apply_b_dec_to_input=subtracts)
    folded = fold_centring(dictionary)
    x = stream()
    centred = x - x.mean(1, keepdim=True)
    # mutations tried: no constant for b_dec; b_mag shifted without exp(r_mag)
    assert torch.allclose(folded.encode(x), dictionary.encode(centred), atol=1e-4)
    assert torch.allclose(folded.encode(centred), dictionary.encode(centred), atol=1e-4)
    # the reconstruction is of the uncentred stream: the same error, x as it is
    error = centred - dictionary.reconstruct(centred)
    assert torch.allclose(x - folded.reconstruct(x), error, atol=1e-4)


def test_what_cannot_be_folded_is_refused():
    dictionary = replace(random_dictionary("topk"), normalize_activations="layer_norm")
    with pytest.raises(InputError, match='normalize_activations "layer_norm" cannot'):
        fold_centring(dictionary)
