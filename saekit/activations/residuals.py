"""The residual stream in bulk: from token ids to the stream at every layer, in one pass.

The forward pass runs the blocks of the model's description without a cache, without attention
patterns and without the unembedding, and stops after the last block that is needed.  Layer
`n_layers` is the output of the last block *before* the final LayerNorm (Hugging Face's last hidden
state is after it).  BOS positions are never handed to a dictionary.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saekit.errors import InputError
from saekit.model.decoder import TANH_GELUS, Decoder
from saekit.model.gating import attend
from saekit.model.loading import LanguageModel


def _activated(
    inner: Float[Tensor, "*batch d_mlp"], activation: str
) -> Float[Tensor, "*batch d_mlp"]:
    """act(z) of one of `ACTIVATIONS`."""
    if activation in TANH_GELUS:
        return F.gelu(inner, approximate="tanh")
    if activation == "quick_gelu":
        return inner * torch.sigmoid(1.702 * inner)
    return {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[activation](inner)


def _norm(
    model: Decoder, x: Float[Tensor, "*batch d_model"], gamma: Tensor, beta: Tensor
) -> Tensor:
    if model.norm == "rms":
        return F.rms_norm(x, x.shape[-1:], gamma, model.eps)
    return F.layer_norm(x, x.shape[-1:], gamma, beta, model.eps)


def _linear(x: Float[Tensor, "*batch d_in"], W: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(b, x.flatten(0, -2), W).unflatten(0, x.shape[:-1])


def _block(
    model: Decoder, m: int, hidden: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """Block m: hidden + attention, then + MLP."""
    w = model.blocks[m]

    def split_heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, model.d_head)).transpose(1, 2).to(hidden.dtype)

    normed = _norm(model, hidden, w.gamma1, w.beta1)
    q, k, v = map(split_heads, _linear(normed, w.W_QKV, w.b_QKV).split(model.sides, -1))
    if model.rotary is not None:
        positions = torch.arange(q.shape[2], device=q.device)
        q, k = model.rotary.turned(q, positions), model.rotary.turned(k, positions)
    if model.shared > 1:
        k, v = (t.repeat_interleave(model.shared, 1) for t in (k, v))
    # under autocast attention stays in the stream's type: 16-wide heads are slow in bf16 on CPU
    with torch.autocast(hidden.device.type, enabled=False):
        if model.gate_bias is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=w.score_scale)
        else:
            mixed, _ = attend(q, k, v, model.gate_bias[m], w.score_scale)
    hidden = hidden + _linear(mixed.transpose(1, 2).flatten(2), w.W_O.flatten(0, 1), w.b_O)
    normed = _norm(model, hidden, w.gamma2, w.beta2)
    inner = _linear(normed, w.W_in, w.b_in)
    if w.W_gate is None or w.b_gate is None:
        inner = _activated(inner, model.activation)
    else:
        inner = inner * _activated(_linear(normed, w.W_gate, w.b_gate), model.activation)
    return hidden + _linear(inner, w.W_out, w.b_out)


def embed(
    model: LanguageModel, ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream at layer 0: token embeddings, plus those of positions if learned."""
    return model.decoder.embedded(ids)


def run_blocks(
    model: LanguageModel, hidden: Float[Tensor, "batch pos d_model"], first: int, last: int
) -> Float[Tensor, "batch pos d_model"]:
    """The stream at layer `last`, from the stream at layer `first`."""
    decoder = model.decoder
    for m in range(first, last):
        hidden = _block(decoder, m, hidden)
    return hidden


def final_norm(
    model: LanguageModel, hidden: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """The final norm of the stream at layer `n_layers`."""
    decoder = model.decoder
    return _norm(decoder, hidden, decoder.gamma_f, decoder.beta_f)


def unembed(
    model: LanguageModel, hidden: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits from the stream at layer `n_layers`."""
    return final_norm(model, hidden) @ model.decoder.W_U


def check_layers(model: LanguageModel, layers: Iterable[int] | None) -> list[int]:
    """Sorted layers without repeats; None means all of them.

    Raises:
        InputError: a layer that the model does not have.
    """
    if layers is None:
        return list(range(model.n_layers + 1))
    chosen = sorted(set(layers))
    wrong = [layer for layer in chosen if not 0 <= layer <= model.n_layers]
    if wrong or not chosen:
        what = f"Layer {wrong[0]} does not exist" if wrong else "No layer was given"
        raise InputError(f"{what}: {model.id} has layers 0 to {model.n_layers}.")
    return chosen


@torch.no_grad()
def residuals(
    model: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    layers: Iterable[int] | None = None,
    bf16: bool = False,
) -> Float[Tensor, "layer batch pos d_model"]:
    """The residual stream at the given layers, in ascending order of layers.

    Args:
        model: the model.
        ids: token ids as the model reads them (BOS included).
        layers: 0..n_layers; None for all.
        bf16: run the matrix products in bfloat16 (about 0.3% noise; for training only).

    Raises:
        InputError: a layer out of range, or more positions than the context.
    """
    wanted = check_layers(model, layers)
    if ids.shape[1] > model.n_ctx:
        raise InputError(f"{ids.shape[1]} positions do not fit the context of {model.n_ctx}.")
    ids = ids.to(model.device)
    hidden = embed(model, ids)
    out = torch.empty(len(wanted), *hidden.shape, dtype=hidden.dtype, device=hidden.device)
    layer = 0
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=bf16):
        for slot, target in enumerate(wanted):
            hidden = run_blocks(model, hidden, layer, target)
            layer = target
            out[slot] = hidden
    return out
