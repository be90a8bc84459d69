"""The residual stream in bulk: from token ids to the stream at every layer, in one pass.

The forward pass runs the Hugging Face blocks' own weights without a cache, without attention
patterns and without the unembedding, and stops after the last block that is needed.  Layer
`n_layers` is the output of the last block *before* the final LayerNorm (Hugging Face's last hidden
state is after it).  BOS positions are never handed to a dictionary.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from saekit.errors import InputError
from saekit.model.gating import attend, gate_bias
from saekit.model.loading import LanguageModel


def _block(block: GPT2Block, hidden: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """One GPT-2 block: hidden + attention, then + MLP."""
    attention, mlp = block.attn, block.mlp
    batch, pos, d_model = hidden.shape

    def split_heads(x: Tensor) -> Tensor:
        return x.view(batch, pos, attention.num_heads, -1).transpose(1, 2).to(hidden.dtype)

    q, k, v = attention.c_attn(block.ln_1(hidden)).split(d_model, dim=2)
    # under autocast attention stays in the stream's type: 16-wide heads are slow in bf16 on CPU
    with torch.autocast(hidden.device.type, enabled=False):
        heads, gates = (split_heads(q), split_heads(k), split_heads(v)), gate_bias(attention.config)
        if gates is None:
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True, scale=attention.scaling)
        else:
            mixed, _ = attend(*heads, gates[attention.layer_idx], attention.scaling)
    hidden = hidden + attention.c_proj(mixed.transpose(1, 2).reshape(batch, pos, d_model))
    inner = mlp.c_fc(block.ln_2(hidden))
    if isinstance(mlp.act, NewGELUActivation):  # the same function, fused
        inner = F.gelu(inner, approximate="tanh")
    else:
        inner = mlp.act(inner)
    return hidden + mlp.c_proj(inner)


def embed(
    model: LanguageModel, ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream at layer 0: token plus position embeddings."""
    transformer = model.hf.transformer
    return transformer.wte(ids) + transformer.wpe(torch.arange(ids.shape[1], device=ids.device))


def run_blocks(
    model: LanguageModel, hidden: Float[Tensor, "batch pos d_model"], first: int, last: int
) -> Float[Tensor, "batch pos d_model"]:
    """The stream at layer `last`, from the stream at layer `first`."""
    for block in model.hf.transformer.h[first:last]:
        hidden = _block(cast(GPT2Block, block), hidden)
    return hidden


def unembed(
    model: LanguageModel, hidden: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits from the stream at layer `n_layers`."""
    return model.hf.lm_head(model.hf.transformer.ln_f(hidden))


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
