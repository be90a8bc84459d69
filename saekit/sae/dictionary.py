"""One trained dictionary: encode a residual activation into features, decode it back.

    preactivations = (x - b_dec) @ W_enc + b_enc
    topk:      the k largest preactivations, negatives set to 0   (Gao et al. 2024, 2406.04093)
    standard:  relu(preactivations)
    jumprelu:  preactivations where they exceed `threshold`, else 0   (2407.14435)
    reconstruction = activations @ W_dec + b_dec

These are SAELens' equations for the same names, so its files give the same numbers.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ARCHITECTURES = ("topk", "standard", "jumprelu")


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The SAE of one layer; activations are in the model's own units (normalisation folded).

    Attributes:
        layer: residual layer 0..n_layers.
        architecture: one of `ARCHITECTURES`.
        k: active features per token; None unless "topk".
        log_sparsity: log10 of each feature's firing rate at the end of training, if known.
        metadata: SAELens' metadata of the folder it came from.
    """

    layer: int
    architecture: str
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    k: int | None = None
    threshold: Float[Tensor, " d_sae"] | None = None
    apply_b_dec_to_input: bool = True
    log_sparsity: Float[Tensor, " d_sae"] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def to(self, device: str | torch.device) -> "Dictionary":
        """The same dictionary on another device."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def preactivations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature values before the sparsity rule."""
        x = x.to(self.W_enc.dtype)
        if self.apply_b_dec_to_input:
            x = x - self.b_dec
        return x @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, mostly zeros."""
        pre = self.preactivations(x)
        if self.architecture == "topk":
            assert self.k is not None
            values, indices = pre.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter_(-1, indices, values.relu())
        active = pre.relu()
        if self.architecture == "jumprelu":
            assert self.threshold is not None
            active = active * (pre > self.threshold)
        return active

    def encode_sparse(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
        """The active features only, largest first: (values, feature indices).

        Without a fixed k the last axis is as long as the busiest token needs; unused places hold
        value 0 (as do top-k places whose preactivation is negative).
        """
        if self.architecture == "topk":
            assert self.k is not None
            values, indices = self.preactivations(x).topk(self.k, dim=-1)
            return values.relu(), indices
        active = self.encode(x)
        busiest = int((active > 0).sum(-1).max()) if active.numel() else 0
        return active.topk(max(1, busiest), dim=-1)

    def decode(self, features: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction from dense feature activations."""
        return features @ self.W_dec + self.b_dec

    def decode_sparse(
        self, values: Float[Tensor, "*batch k"], indices: Int[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction from `encode_sparse`; reads only the rows in use."""
        flat = F.embedding_bag(
            indices.reshape(-1, indices.shape[-1]),
            self.W_dec,
            per_sample_weights=values.reshape(-1, values.shape[-1]).to(self.W_dec.dtype),
            mode="sum",
        )
        return flat.view(*indices.shape[:-1], self.d_in) + self.b_dec
