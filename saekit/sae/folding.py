"""Exact changes of a dictionary's weights that leave out what was done to its input in training.

Each function returns a new dictionary whose reconstruction of the stream is the same.  Whatever is
added to a product of the encoder (b_enc, b_gate, b_mag, threshold) is in the same unit as its
preactivation and moves with it; exp(r_mag) is a ratio and never moves.
"""

from dataclasses import replace

import torch
from torch import Tensor

from saekit.errors import InputError
from saekit.sae.dictionary import BIASES, Dictionary

_IN_UNITS = {"b_enc", "threshold", "b_gate", "b_mag"}


def _biases(dictionary: Dictionary) -> dict[str, Tensor]:
    """The [d_sae] tensors that are in the unit of the preactivations."""
    names = [name for name in BIASES[dictionary.architecture] if name in _IN_UNITS]
    return {name: getattr(dictionary, name) for name in names}


def fold_decoder_norm(dictionary: Dictionary) -> Dictionary:
    """Decoder rows of norm 1; an activation is then the length of what the feature adds.

    Exact for "standard", "jumprelu" and "gated".  For "topk" and "abstopk" the choice of features
    becomes that by activation times row norm, which is SAELens' `rescale_acts_by_decoder_norm`:
    for dictionaries trained without it, the choice would change.  A row of zeros stays zero.
    """
    norms = dictionary.W_dec.norm(dim=1)
    scaled = {name: value * norms for name, value in _biases(dictionary).items()}
    tiny = torch.finfo(norms.dtype).tiny
    return replace(
        dictionary,
        W_enc=dictionary.W_enc * norms,
        W_dec=dictionary.W_dec / norms.clamp_min(tiny)[:, None],
        **scaled,
    )


def fold_centring(dictionary: Dictionary) -> Dictionary:
    """From a dictionary of the centred stream x - mean(x) to one of x.

    Models whose writing weights were centred (TransformerLens' `center_writing_weights`) have such
    a stream.  Centring is the projection C = I - 1 1'/d_in, so (x C - b_dec) @ W_enc is
    (x - b_dec) @ C W_enc plus the constant -b_dec (I - C) W_enc: the encoder becomes blind to the
    mean, and its features are the same on the centred and on the uncentred stream.  The mean
    itself is no feature: `Dictionary.decode` adds it when it is given the stream.

    Raises:
        InputError: the dictionary normalises each token, which is no projection.
    """
    if dictionary.normalize_activations != "none":
        raise InputError(
            f'A dictionary with normalize_activations "{dictionary.normalize_activations}" cannot '
            "be folded for a centred stream."
        )
    W_enc = dictionary.W_enc - dictionary.W_enc.mean(0)
    biases = {}
    if dictionary.apply_b_dec_to_input:
        biases = _shifted(dictionary, dictionary.b_dec @ (W_enc - dictionary.W_enc))
    return replace(dictionary, W_enc=W_enc, centre_input=True, **biases)


def fold_b_dec(dictionary: Dictionary, subtract: bool) -> Dictionary:
    """The same dictionary with b_dec subtracted from its input, or not, as `subtract` says."""
    if dictionary.apply_b_dec_to_input == subtract:
        return dictionary
    product = dictionary.b_dec @ dictionary.W_enc
    biases = _shifted(dictionary, product if subtract else -product)
    return replace(dictionary, apply_b_dec_to_input=subtract, **biases)


def _shifted(dictionary: Dictionary, shift: Tensor) -> dict[str, Tensor]:
    """The biases that make up for encoder products that are smaller by `shift` [d_sae]."""
    biases = {n: b + shift for n, b in _biases(dictionary).items() if n != "threshold"}
    if dictionary.architecture == "gated":
        assert dictionary.r_mag is not None and dictionary.b_mag is not None
        biases["b_mag"] = dictionary.b_mag + shift * dictionary.r_mag.exp()
    return biases
