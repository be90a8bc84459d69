"""Random dictionaries of every architecture, with decoder rows of very different norms."""

import torch

from saekit.sae.dictionary import BIASES, STORED_KINDS, WITH_K, Dictionary

KINDS = STORED_KINDS


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


def hooked(model, centred):
    """A saekit model in TransformerLens, with centred writing weights or with all as stored."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = model.hf.config
    settings = HookedTransformerConfig(
        n_layers=config.n_layer, d_model=config.n_embd, n_ctx=config.n_positions,
        d_head=config.n_embd // config.n_head, n_heads=config.n_head, d_vocab=config.vocab_size,
        act_fn="gelu_new", normalization_type="LN", device="cpu",
    )  # fmt: skip
    lens = HookedTransformer(settings)
    lens.load_and_process_state_dict(
        convert_gpt2_weights(model.hf, settings), fold_ln=False, center_unembed=False,
        fold_value_biases=False, center_writing_weights=centred,
    )  # fmt: skip
    return lens
