"""Gated attention: a head may close an edge.

    s = q k^T scale        P = softmax of s over the keys up to the query
    A = P * 1[s + b_h > 0]

The weights of closed edges are lost, not given to the others: a row of A sums to at most 1.  This
is the form of sparse attention post-training (arXiv 2512.05865), with one bias per head.  A model
is gated when its config says `"attention": "gated", "gate_bias": [n_layers][n_heads]`; all other
weights are GPT-2's.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from saekit.errors import ModelError

IMPLEMENTATION = "saekit_gated"


def gate_bias(config: Any, name: str = "the model") -> Float[Tensor, "layer head"] | None:
    """The gate biases of a model's config; None where its attention is dense.

    Raises:
        ModelError: another kind of attention, or biases missing or of another shape.
    """
    kind = getattr(config, "attention", None) or "dense"
    if kind == "dense":
        return None
    if kind != "gated":
        raise ModelError(f'The attention of {name} is "{kind}"; saekit reads dense and gated.')
    try:
        bias = torch.tensor(config.gate_bias, dtype=torch.float32)
    except (AttributeError, TypeError, ValueError):
        bias = torch.zeros(0)
    if bias.shape != (config.n_layer, config.n_head) or not bias.isfinite().all():
        raise ModelError(
            f"The config of {name} needs gate_bias as {config.n_layer} lists of {config.n_head} "
            "numbers."
        )
    return bias


def gated(
    scores: Float[Tensor, "*batch head query key"],
    pattern: Float[Tensor, "*batch head query key"],
    bias: Float[Tensor, " head"],
) -> Float[Tensor, "*batch head query key"]:
    """The pattern with the closed edges at 0.

    Args:
        scores: scaled; masked places are 0 in the pattern and may hold anything.
    """
    return pattern * (scores + bias.to(scores)[:, None, None] > 0)


def attend(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch head key d_head"],
    value: Float[Tensor, "batch head key d_head"],
    bias: Float[Tensor, " head"],
    scale: float,
    mask: Tensor | None = None,
) -> tuple[Float[Tensor, "batch head query d_head"], Float[Tensor, "batch head query key"]]:
    """What the heads move, and the gated pattern; `mask` is added to the scores, causal if None."""
    scores = query @ key.transpose(-1, -2) * scale
    if mask is None:
        n = key.shape[-2]
        mask = scores.new_full((n, n), -torch.inf).triu(1)[n - query.shape[-2] :]
    pattern = gated(scores, (scores + mask).softmax(-1), bias)
    return pattern @ value, pattern


def _in_transformers(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    bias = torch.tensor(module.config.gate_bias[module.layer_idx], device=query.device)
    moved, pattern = attend(query, key, value, bias, scaling, attention_mask)
    return moved.transpose(1, 2), pattern


AttentionInterface.register(IMPLEMENTATION, cast(Any, _in_transformers))
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


def install(hf: PreTrainedModel) -> None:
    """Let the forward pass of a `transformers` model apply the gates of its config, if any."""
    if gate_bias(hf.config, hf.config._name_or_path) is not None:
        hf.set_attn_implementation(IMPLEMENTATION)
