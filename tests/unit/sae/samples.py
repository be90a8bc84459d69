"""Random dictionaries of every architecture, with decoder rows of very different norms."""

import torch

from saekit.sae.dictionary import ARCHITECTURES, BIASES, WITH_K, Dictionary

KINDS = ARCHITECTURES


def random_dictionary(kind, layer=1, d_in=8, d_sae=24, **fields):
    """Weights drawn from the seed `layer`; thresholds are above 0."""
    generator = torch.Generator().manual_seed(layer)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    biases = {"b_enc": None, **{name: 0.5 * normal(d_sae) for name in BIASES[kind]}}
    if kind == "jumprelu":
        biases["threshold"] = biases["threshold"].abs()
    weights = {
        "W_enc": normal(d_in, d_sae),
        "W_dec": normal(d_sae, d_in) * (1 + torch.arange(d_sae))[:, None] / d_sae,
        "b_dec": normal(d_in),
        **biases,
    }
    if kind in WITH_K:
        weights["k"] = 4
    return Dictionary(layer=layer, architecture=kind, **{**weights, **fields})
