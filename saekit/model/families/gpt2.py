"""GPT-2 as a `Decoder`, and what decides its function beside the weights' values.

Every field of `GPT2Config` that changes the function is read here or refused.  Dropout is off,
`use_cache`, `reorder_and_upcast_attn` (an order of rounding) and the summary's fields change
nothing in the logits.
"""

import math
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from saekit.errors import ModelError
from saekit.model.decoder import ACTIVATIONS, TANH_GELUS, Decoder, DecoderBlock
from saekit.model.gating import gate_bias

_STANDARD_HEAD, _STANDARD_HEADS = 64, 12  # GPT-2's sizes all have heads of 64; gpt2-mini has 12


def check(config: Any, name: str) -> None:
    """Refuse a model that a `Decoder` cannot express.

    Raises:
        ModelError: with the field that is in the way and its value.
    """
    refused = {
        "activation_function": config.activation_function not in ACTIVATIONS,
        "add_cross_attention": config.add_cross_attention,
        "quantization_config": getattr(config, "quantization_config", None) is not None,
        "n_head": config.n_head < 1 or config.n_embd % config.n_head != 0,
    }
    for field, wrong in refused.items():
        if wrong:
            read = {"activation_function": f"one of {', '.join(ACTIVATIONS)}",
                    "add_cross_attention": "models that read one text, so false",
                    "quantization_config": "plain weights, so none",
                    "n_head": f"a divisor of n_embd, {config.n_embd}"}  # fmt: skip
            raise ModelError(
                f"The config of {name} has {field} {getattr(config, field)}; "
                f"saekit reads {read[field]}."
            )
    gate_bias(config, name)


def decoder(hf: GPT2LMHeadModel) -> Decoder:
    """The description of a loaded GPT-2.

    Raises:
        ModelError: it cannot be expressed; see `check`.
    """
    config, transformer = hf.config, hf.transformer
    check(config, config._name_or_path or "the model")
    gates = gate_bias(config)
    W_E = transformer.wte.weight.detach()
    return Decoder(
        n_heads=config.n_head,
        activation=config.activation_function,
        eps=config.layer_norm_epsilon,
        W_E=W_E,
        W_pos=transformer.wpe.weight.detach(),
        blocks=tuple(_block(m, block, config) for m, block in enumerate(transformer.h)),
        gamma_f=transformer.ln_f.weight.detach(),
        beta_f=transformer.ln_f.bias.detach(),
        W_U=hf.lm_head.weight.detach().T,
        gate_bias=None if gates is None else gates.to(W_E),
        n_kv_heads=config.n_head,
    )


def _block(m: int, block: Any, config: Any) -> DecoderBlock:
    d, heads = config.n_embd, config.n_head
    W_QKV, b_QKV = block.attn.c_attn.weight.detach(), block.attn.c_attn.bias.detach()
    score_scale = 1 / math.sqrt(d // heads) if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        score_scale /= m + 1
    return DecoderBlock(
        gamma1=block.ln_1.weight.detach(),
        beta1=block.ln_1.bias.detach(),
        W_QKV=W_QKV,
        b_QKV=b_QKV,
        W_V=W_QKV[:, 2 * d :].view(d, heads, d // heads).transpose(0, 1),
        b_V=b_QKV[2 * d :].view(heads, d // heads),
        W_O=block.attn.c_proj.weight.detach().view(heads, d // heads, d),
        b_O=block.attn.c_proj.bias.detach(),
        score_scale=score_scale,
        gamma2=block.ln_2.weight.detach(),
        beta2=block.ln_2.bias.detach(),
        W_in=block.mlp.c_fc.weight.detach(),
        b_in=block.mlp.c_fc.bias.detach(),
        W_out=block.mlp.c_proj.weight.detach(),
        b_out=block.mlp.c_proj.bias.detach(),
    )


def beyond_the_weights(hf: GPT2LMHeadModel) -> list[str]:
    """What changes the function though names, shapes and values of the body's weights are equal.

    Empty for the default configuration with a tied head, so that fingerprints of such models are
    those of their weights alone.
    """
    config = hf.config
    found = [
        f"{name}={value}"
        for name, value, default in (
            ("scale_attn_weights", bool(config.scale_attn_weights), True),
            (
                "scale_attn_by_inverse_layer_idx",
                bool(config.scale_attn_by_inverse_layer_idx),
                False,
            ),
            ("layer_norm_epsilon", float(config.layer_norm_epsilon), 1e-5),
        )
        if value != default
    ]
    if config.activation_function not in TANH_GELUS:
        found.append(f"activation_function={config.activation_function}")
    if config.n_head != _STANDARD_HEADS and config.n_embd != _STANDARD_HEAD * config.n_head:
        found.append(f"n_head={config.n_head}")
    return found


def is_tied(hf: GPT2LMHeadModel) -> bool:
    """Whether the unembedding is the embedding."""
    W_U, W_E = hf.lm_head.weight, hf.transformer.wte.weight
    return W_U.data_ptr() == W_E.data_ptr() or torch.equal(W_U, W_E)
