"""What a decoder-only language model is: its blocks, in the words that every forward pass reads.

    mid = x + sum_h o_h + b_O        o_h = A_h ( norm_1(x) W_V + b_V ) W_O
    x'  = mid + ( rho * u ) W_out + b_out        u = norm_2(mid) W_in + b_in
    logits = norm_f(x_n) W_U

rho is act(u) / u, or in a gated MLP act( norm_2(mid) W_gate + b_gate ).  A norm centres or does not
(LayerNorm, RMSNorm).  Positions are learned and added to the token's embedding, or they turn
queries and keys (rotary).  Query heads may share keys and values: W_V is that of each query head.
One module per family fills the description (`families/`) and refuses a model that it cannot
express.  `exact.py` runs it for one prompt with every value and with edits,
`activations/residuals.py` in bulk, `activations/bf16.py` in bulk in bfloat16.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

# as `transformers` calls them; the first three are one function
TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
ACTIVATIONS = (*TANH_GELUS, "gelu", "relu", "silu", "quick_gelu")
NormKind = Literal["layer", "rms"]


@dataclass(frozen=True)
class Rotary:
    """Positions that turn the first `width` values of each query and key; `width` is even.

    Value i and value i + width / 2 are the two coordinates that are turned together
    (RoFormer, Su et al. 2021, in the order that `transformers` stores them in).
    """

    cos: Float[Tensor, "context width"]
    sin: Float[Tensor, "context width"]

    def turned(
        self,
        x: Float[Tensor, "*batch pos d_head"],
        positions: Int[Tensor, " pos"],
        back: bool = False,
    ) -> Float[Tensor, "*batch pos d_head"]:
        """x turned to its positions, or `back` from them (exact where no scaling stretches it)."""
        width = self.cos.shape[1]
        own, rest = x[..., :width], x[..., width:]
        first, second = own.chunk(2, -1)
        sin = -self.sin[positions] if back else self.sin[positions]
        own = own * self.cos[positions] + torch.cat([-second, first], -1) * sin
        return torch.cat([own, rest], -1) if rest.shape[-1] else own


@dataclass(frozen=True)
class DecoderBlock:
    """One block; `W_V` and `W_O` are those of `W_QKV` and the output layer by query head.

    Attributes:
        W_QKV: all queries, then all keys, then all values, each head after head.
        score_scale: what attention scores are multiplied with.
        W_gate, b_gate: of a gated MLP, else None.
    """

    gamma1: Float[Tensor, " d_model"]
    beta1: Float[Tensor, " d_model"]
    W_QKV: Float[Tensor, "d_model q_and_k_and_v"]
    b_QKV: Float[Tensor, " q_and_k_and_v"]
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
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None

    def to(self, dtype: torch.dtype) -> Self:
        """The same block in another precision."""
        return replace(self, **_converted(self, dtype))


@dataclass(frozen=True)
class Decoder:
    """A model.  Its tensors share the memory of the loaded weights where these are stored in this
    form, until `to` changes their type.

    Attributes:
        activation: one of `ACTIVATIONS`.
        eps: of every norm.
        W_pos: learned positions, or None.
        rotary: positions that turn queries and keys, or None.
        n_kv_heads: heads of keys and values; each serves n_heads / n_kv_heads query heads.
        gate_bias: of gated attention (`gating.py`); None where attention is dense.
    """

    n_heads: int
    activation: str
    eps: float
    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "context d_model"] | None
    blocks: tuple[DecoderBlock, ...]
    gamma_f: Float[Tensor, " d_model"]
    beta_f: Float[Tensor, " d_model"]
    W_U: Float[Tensor, "d_model d_vocab"]
    gate_bias: Float[Tensor, "layer head"] | None
    n_kv_heads: int
    norm: NormKind = "layer"
    rotary: Rotary | None = None

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return self.W_E.shape[1]

    @property
    def d_head(self) -> int:
        return self.blocks[0].W_V.shape[2]

    @property
    def shared(self) -> int:
        """How many query heads share one head of keys and values."""
        return self.n_heads // self.n_kv_heads

    @property
    def sides(self) -> tuple[int, int, int]:
        """Columns of `W_QKV` that are queries, keys and values."""
        keys = self.n_kv_heads * self.d_head
        return self.n_heads * self.d_head, keys, keys

    def columns(self, head: int, side: Literal["query", "key"]) -> slice:
        """Where the query or the key of a head stands in `W_QKV`."""
        place = head if side == "query" else self.n_heads + head // self.shared
        return slice(place * self.d_head, (place + 1) * self.d_head)

    def centred(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """x as a norm reads it before it divides: minus its mean, if norms centre."""
        return x if self.norm == "rms" else x - x.mean(-1, keepdim=True)

    def embedded(self, ids: Int[Tensor, "*batch pos"]) -> Float[Tensor, "*batch pos d_model"]:
        """The stream at layer 0."""
        x = torch.nn.functional.embedding(ids, self.W_E)
        return x if self.W_pos is None else x + self.W_pos[: ids.shape[-1]]

    def to(self, dtype: torch.dtype) -> Self:
        """The same model in another precision."""
        return replace(
            self, **_converted(self, dtype),
            blocks=tuple(block.to(dtype) for block in self.blocks),
            rotary=self.rotary and replace(self.rotary, **_converted(self.rotary, dtype)),
        )  # fmt: skip


def _converted(part: DecoderBlock | Decoder | Rotary, dtype: torch.dtype) -> dict[str, Tensor]:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {name: value.to(dtype) for name, value in values.items() if isinstance(value, Tensor)}
