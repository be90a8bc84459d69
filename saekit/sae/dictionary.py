"""One trained dictionary: encode a residual activation into features, decode it back.

With x the stream at one token and p = (x - b_dec) @ W_enc + b_enc the preactivations:

    standard   relu(p)                                    (Cunningham et al. 2023, 2309.08600)
    topk       relu of the k largest p, else 0            (Gao et al. 2024, 2406.04093)
    abstopk    the k largest |p| with their signs, else 0 (2510.00404)
    jumprelu   relu(p) where p > threshold, else 0        (Rajamanoharan et al. 2024, 2407.14435)
    gated      relu(m) where g > 0, else 0                (Rajamanoharan et al. 2024, 2404.16014)
               g = (x - b_dec) @ W_enc + b_gate, m = ((x - b_dec) @ W_enc) * exp(r_mag) + b_mag
    reconstruction = activations @ W_dec + b_dec

These are SAELens' inference equations for the same names, so its files give the same numbers.
What is trained with BatchTopK (2412.06410) or Matryoshka BatchTopK (2503.17547) is used as jumprelu
with one threshold for all features, as SAELens does: a token's features then do not depend on the
other tokens of its batch.  With `apply_b_dec_to_input` false, x takes the place of x - b_dec.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saekit.errors import InputError
from saekit.sae.topk import MIN_TOKENS, NarrowTopK, supported

STORED_KINDS = ("topk", "standard", "jumprelu", "gated", "abstopk")
WITH_K = ("topk", "abstopk")
BIASES = {  # tensors of shape [d_sae] of each architecture
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
_NARROW_SHARE = 16  # times k: with fewer features a shortlist would be most of them
_LAYER_NORM_EPS = 1e-5  # added to the standard deviation on the way in only, as in SAELens


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The SAE of one layer; activations are in the model's own units (normalisation folded).

    Decoder rows may have any norm.  Which of the [d_sae] tensors there are is in `BIASES`.

    Attributes:
        layer: residual layer 0..n_layers.
        architecture: one of `STORED_KINDS`.
        k: active features per token; None unless "topk" or "abstopk".
        centre_input: the dictionary was trained on a stream without its mean over dimensions
            (TransformerLens' `centre_writing_weights`).  Its encoder is blind to that mean (see
            `saekit.sae.folding.fold_centring`); `decode` puts it back when it is given the stream.
        normalize_activations: a normalisation of each token that cannot be folded: "none", or
            SAELens' "layer_norm" or "constant_norm_rescale" in imported dictionaries.
        log_sparsity: log10 of each feature's firing rate at the end of training, if known.
        metadata: SAELens' metadata of the folder it came from.
    """

    layer: int
    architecture: str
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"] | None
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    k: int | None = None
    threshold: Float[Tensor, " d_sae"] | None = None
    b_gate: Float[Tensor, " d_sae"] | None = None
    r_mag: Float[Tensor, " d_sae"] | None = None
    b_mag: Float[Tensor, " d_sae"] | None = None
    apply_b_dec_to_input: bool = True
    centre_input: bool = False
    normalize_activations: str = "none"
    log_sparsity: Float[Tensor, " d_sae"] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def training_architecture(self) -> str:
        """What it was trained as, such as "batchtopk" for a jumprelu with one threshold."""
        return self.metadata.get("training_architecture") or self.architecture

    @property
    def bias(self) -> Float[Tensor, " d_sae"]:
        """The bias of the preactivations: b_enc, or b_gate of a gated dictionary."""
        bias = self.b_gate if self.architecture == "gated" else self.b_enc
        assert bias is not None
        return bias

    def to(self, device: str | torch.device) -> "Dictionary":
        """The same dictionary on another device."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def _inputs(self, x: Tensor) -> Tensor:
        """What the encoder is multiplied with."""
        x = x.to(self.W_enc.dtype)
        if self.normalize_activations != "none":
            mean, scale = self._statistics(x)
            if self.normalize_activations == "layer_norm":
                scale = scale + _LAYER_NORM_EPS
            x = (x - mean) / scale
        if self.apply_b_dec_to_input:
            x = x - self.b_dec
        return x

    def _products(self, x: Tensor) -> Tensor:
        """Encoder products before any bias of shape [d_sae]."""
        return self._inputs(x) @ self.W_enc

    @cached_property
    def _narrow(self) -> NarrowTopK | None:
        """The fast way to the k largest, where there is one."""
        possible = (
            self.architecture == "topk"
            and self.W_enc.device.type == "cpu"
            and self.W_enc.dtype == torch.float32
            and self.k is not None
            and _NARROW_SHARE * self.k <= self.d_sae
            and supported()
        )
        if not possible:
            return None
        assert self.b_enc is not None and self.k is not None
        return NarrowTopK(self.W_enc, self.b_enc, self.k)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `normalize_activations` takes off each token and divides it by, [..., 1] each."""
        if self.normalize_activations == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
        return torch.zeros_like(scale), scale

    def preactivations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """What decides whether a feature is active: p above, or g of a gated dictionary."""
        return self._products(x) + self.bias

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, mostly zeros; in units of the stream if decoder rows have norm 1."""
        products = self._products(x)
        pre = products + self.bias
        if self.architecture in WITH_K:
            values, indices = self._largest(pre, sorted=False)
            return torch.zeros_like(pre).scatter_(-1, indices, values)
        if self.architecture == "gated":
            assert self.r_mag is not None and self.b_mag is not None
            return (products * self.r_mag.exp() + self.b_mag).relu() * (pre > 0)
        active = pre.relu()
        if self.architecture == "jumprelu":
            assert self.threshold is not None
            active = active * (pre > self.threshold)
        return active

    def _largest(self, pre: Tensor, sorted: bool = True) -> tuple[Tensor, Tensor]:
        """The k chosen (values, indices) of "topk" and "abstopk"."""
        assert self.k is not None
        if self.architecture == "topk":
            values, indices = pre.topk(self.k, dim=-1, sorted=sorted)
            return values.relu(), indices
        indices = pre.abs().topk(self.k, dim=-1, sorted=sorted).indices
        return pre.gather(-1, indices), indices

    def encode_sparse(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
        """The active features only, largest (in magnitude) first: (values, feature indices).

        Without a fixed k the last axis is as long as the busiest token needs; unused places hold
        value 0 (as do top-k places whose preactivation is negative).
        """
        if self.architecture in WITH_K:
            inputs = self._inputs(x)
            many = inputs.dim() == 2 and len(inputs) >= MIN_TOKENS
            if many and not torch.is_grad_enabled() and (narrow := self._narrow) is not None:
                values, indices = narrow(inputs)
                return values.relu(), indices
            return self._largest(inputs @ self.W_enc + self.bias)
        active = self.encode(x)
        busiest = int((active > 0).sum(-1).max()) if active.numel() else 0
        return active.topk(max(1, busiest), dim=-1)

    def decode(
        self,
        features: Float[Tensor, "*batch d_sae"],
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction from dense feature activations.

        Args:
            features: from `encode`.
            x: the stream they came from.  Only dictionaries with `centre_input` or
                `normalize_activations` use it: the former then put each token's mean back
                (without x the reconstruction is of the centred stream), the latter need it.

        Raises:
            InputError: the dictionary normalises each token and x is missing.
        """
        return self._restored(features @ self.W_dec + self.b_dec, x)

    def decode_sparse(
        self,
        values: Float[Tensor, "*batch k"],
        indices: Int[Tensor, "*batch k"],
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_in"]:
        """`decode` from `encode_sparse`; reads only the rows in use."""
        flat = F.embedding_bag(
            indices.reshape(-1, indices.shape[-1]),
            self.W_dec,
            per_sample_weights=values.reshape(-1, values.shape[-1]).to(self.W_dec.dtype),
            mode="sum",
        )
        return self._restored(flat.view(*indices.shape[:-1], self.d_in) + self.b_dec, x)

    def _restored(self, rebuilt: Tensor, x: Tensor | None) -> Tensor:
        """Undo what was done to each token before encoding."""
        if x is not None and self.centre_input:
            rebuilt = rebuilt + x.to(rebuilt).mean(-1, keepdim=True)
        if self.normalize_activations == "none":
            return rebuilt
        if x is None:
            raise InputError(
                f"The dictionary of layer {self.layer} normalises each token "
                f'("{self.normalize_activations}"): its decoder needs the stream as well.'
            )
        mean, scale = self._statistics(x.to(rebuilt))
        return rebuilt * scale + mean

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The stream as the dictionary sees it: encode, then decode."""
        return self.decode_sparse(*self.encode_sparse(x), x)

    def clamped(
        self,
        x: Float[Tensor, " d_in"],
        features: Int[Tensor, " feature"],
        values: Float[Tensor, " feature"],
    ) -> Float[Tensor, "feature d_in"]:
        """A stream with one feature each set to a value: x + (value - f(x)) d, d its decoder row.

        What the dictionary does not rebuild stays.  Where each token is normalised, the change is
        scaled back as `decode` does.
        """
        step = values.to(self.W_dec) - self.encode(x)[features]
        change = step[:, None] * self.W_dec[features]
        if self.normalize_activations != "none":
            change = change * self._statistics(x.to(change))[1]
        return x + change.to(x)

    def reader(self, feature: int) -> tuple[Float[Tensor, " d_in"], float]:
        """(e, c) with x @ e + c what the feature's activation is while it is active.

        Raises:
            InputError: the dictionary normalises each token, so there is no such direction.
        """
        if self.normalize_activations != "none":
            raise InputError(
                f"The dictionary of layer {self.layer} normalises each token "
                f'("{self.normalize_activations}"), so its features do not read the stream '
                "linearly and cannot be traced."
            )
        direction, bias = self.W_enc[:, feature], float(self.bias[feature])
        if self.architecture == "gated":
            assert self.r_mag is not None and self.b_mag is not None
            direction, bias = direction * self.r_mag[feature].exp(), float(self.b_mag[feature])
        if self.apply_b_dec_to_input:
            bias -= float(self.b_dec.double() @ direction.double())
        return direction, bias
