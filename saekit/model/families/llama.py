"""Llama and its relatives as a `Decoder`: llama (Llama, SmolLM), mistral and qwen2.

RMSNorms, rotary positions, query heads that share keys and values, a gated MLP.  Every field of
their configs that changes the function is read here or refused.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import ModelError
from saekit.model.decoder import ACTIVATIONS, Decoder, DecoderBlock, Rotary

# scalings of rotary positions that are the same for texts of any length
SCALINGS = ("default", "linear", "llama3", "yarn")


def check(config: Any, name: str) -> None:
    """Refuse a model that a `Decoder` cannot express.

    Raises:
        ModelError: with the field that is in the way and its value.
    """
    scaling = (config.rope_parameters or {}).get("rope_type", "default")
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    refused = {
        "hidden_act": (config.hidden_act not in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        "rope_type": (scaling not in SCALINGS, f"one of {', '.join(SCALINGS)}"),
        "sliding_window": (
            window is not None
            and window < config.max_position_embeddings
            and (config.model_type != "qwen2" or "sliding_attention" in kinds),
            "models whose heads see the whole context",
        ),
        "num_key_value_heads": (
            config.num_key_value_heads < 1
            or config.num_attention_heads % config.num_key_value_heads != 0,
            f"a divisor of num_attention_heads, {config.num_attention_heads}"
        ),
        "quantization_config": (
            getattr(config, "quantization_config", None) is not None, "plain weights, so none"
        ),
    }  # fmt: skip
    for field, (wrong, reads) in refused.items():
        if wrong:
            value = scaling if field == "rope_type" else getattr(config, field)
            raise ModelError(f"The config of {name} has {field} {value}; saekit reads {reads}.")


def decoder(hf: Any) -> Decoder:
    """The description of a loaded model.

    Raises:
        ModelError: it cannot be expressed; see `check`.
    """
    config, body = hf.config, hf.model
    check(config, config._name_or_path or "the model")
    W_E = body.embed_tokens.weight.detach()
    positions = torch.arange(config.max_position_embeddings, device=W_E.device)[None]
    cos, sin = body.rotary_emb(W_E, positions)
    return Decoder(
        n_heads=config.num_attention_heads,
        activation=config.hidden_act,
        eps=config.rms_norm_eps,
        W_E=W_E,
        W_pos=None,
        blocks=tuple(_block(layer, config) for layer in body.layers),
        gamma_f=body.norm.weight.detach(),
        beta_f=torch.zeros_like(body.norm.weight),
        W_U=hf.lm_head.weight.detach().T,
        gate_bias=None,
        n_kv_heads=config.num_key_value_heads,
        norm="rms",
        rotary=Rotary(cos[0], sin[0]),
    )


def _parts(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """(weight in row-vector form, bias; zeros where there is none)."""
    W = linear.weight.detach().T
    return W, W.new_zeros(W.shape[1]) if linear.bias is None else linear.bias.detach()


def _block(layer: Any, config: Any) -> DecoderBlock:
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    each = heads // shared  # query heads to a head of keys and values
    sides = [_parts(getattr(layer.self_attn, f"{name}_proj")) for name in "qkv"]
    W_V, b_V = sides[2]
    d_head = W_V.shape[1] // shared
    W_O, b_O = _parts(layer.self_attn.o_proj)
    W_in, b_in = _parts(layer.mlp.up_proj)
    W_out, b_out = _parts(layer.mlp.down_proj)
    W_gate, b_gate = _parts(layer.mlp.gate_proj)
    gamma1 = layer.input_layernorm.weight.detach()
    gamma2 = layer.post_attention_layernorm.weight.detach()
    return DecoderBlock(
        gamma1=gamma1,
        beta1=torch.zeros_like(gamma1),
        W_QKV=torch.cat([W for W, _ in sides], 1),
        b_QKV=torch.cat([b for _, b in sides]),
        W_V=W_V.unflatten(1, (shared, d_head))
        .transpose(0, 1)
        .repeat_interleave(heads // shared, 0),
        b_V=b_V.view(shared, d_head).repeat_interleave(each, 0),
        W_O=W_O.unflatten(0, (heads, d_head)),
        b_O=b_O,
        score_scale=1 / math.sqrt(d_head),
        gamma2=gamma2,
        beta2=torch.zeros_like(gamma2),
        W_in=W_in,
        b_in=b_in,
        W_out=W_out,
        b_out=b_out,
        W_gate=W_gate,
        b_gate=b_gate,
    )


def beyond_the_weights(hf: Any) -> list[str]:
    """What changes the function though names, shapes and values of the weights are equal."""
    config = hf.config
    rope = ",".join(f"{key}={value}" for key, value in sorted(config.rope_parameters.items()))
    return [
        f"{name}={value}"
        for name, value in (
            ("family", config.model_type),
            ("num_attention_heads", config.num_attention_heads),
            ("rms_norm_eps", float(config.rms_norm_eps)),
            ("hidden_act", config.hidden_act),
            ("rope", rope),
        )
    ]


def is_tied(hf: Any) -> bool:
    """Whether the unembedding is the embedding."""
    W_U, W_E = hf.lm_head.weight, hf.model.embed_tokens.weight
    return W_U.data_ptr() == W_E.data_ptr() or torch.equal(W_U, W_E)
