"""What a decoder-only language model is: its blocks, in the words that every forward pass reads.

    mid = x + sum_h o_h + b_O        o_h = A_h ( norm_1(x) W_V + b_V ) W_O
    x'  = mid + act( norm_2(mid) W_in + b_in ) W_out + b_out
    logits = norm_f(x_n) W_U

Positions are learned and added to the token's embedding; norms are LayerNorms; every query head has
keys and values of its own.  One module per family fills the description (`families/`) and refuses a
model that it cannot express.  `exact.py` runs it for one prompt with every value and with edits,
`activations/residuals.py` in bulk, `activations/bf16.py` in bulk in bfloat16.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

# as `transformers` calls them; the first three are one function
TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
ACTIVATIONS = (*TANH_GELUS, "gelu", "relu", "silu", "quick_gelu")


@dataclass(frozen=True)
class DecoderBlock:
    """One block; `W_V` and `W_O` are those of `W_QKV` and the output layer by head.

    Attributes:
        score_scale: what attention scores are multiplied with.
    """

    gamma1: Float[Tensor, " d_model"]
    beta1: Float[Tensor, " d_model"]
    W_QKV: Float[Tensor, "d_model three_d_model"]
    b_QKV: Float[Tensor, " three_d_model"]
    W_V: Float[Tensor, "head d_model d_head"]
    b_V: Float[Tensor, "head d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]
    score_scale: float
    gamma2: Float[Tensor, " d_model"]
    beta2: Float[Tensor, " d_model"]
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]


@dataclass(frozen=True)
class Decoder:
    """A model.  Its tensors share the memory of the loaded weights until `to` changes their type.

    Attributes:
        activation: one of `ACTIVATIONS`.
        eps: of every LayerNorm.
        gate_bias: of gated attention (`gating.py`); None where attention is dense.
    """

    n_heads: int
    activation: str
    eps: float
    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "context d_model"]
    blocks: tuple[DecoderBlock, ...]
    gamma_f: Float[Tensor, " d_model"]
    beta_f: Float[Tensor, " d_model"]
    W_U: Float[Tensor, "d_model d_vocab"]
    gate_bias: Float[Tensor, "layer head"] | None

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return self.W_E.shape[1]

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def to(self, dtype: torch.dtype) -> Self:
        """The same model in another precision."""
        return replace(
            self, **_converted(self, dtype),
            blocks=tuple(replace(b, **_converted(b, dtype)) for b in self.blocks),
        )  # fmt: skip


def _converted(part: "DecoderBlock | Decoder", dtype: torch.dtype) -> dict[str, Tensor]:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {name: value.to(dtype) for name, value in values.items() if isinstance(value, Tensor)}
