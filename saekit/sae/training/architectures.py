"""What each kind of dictionary minimises: one class per architecture, as dense PyTorch.

A layer's activations come scaled to unit variance per dimension (layer.py), so that a loss is about
the FVU and one learning rate fits every layer.  In all of them, with c = x - b_dec,

    pre = c W_enc^T + b_enc,     x' = v W_dec + b_dec,     R = sum |x - x'|^2 / (n d)

over the n tokens of a batch.  Matrices have one row per feature; rows of W_dec keep norm 1.  The
classes differ in v and in what is added to R.  These losses, differentiated by autograd, are the
definition; `step.py` computes the same gradients of the TopK family touching only active features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.sae.kernels import Pairs, Reference
from saekit.sae.training.config import LayerConfig
from saekit.sae.training.straight_through import jump_relu, step_function

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """What one batch costs.

    Attributes:
        total: what is minimised.
        squared_error: sum |x - x'|^2.
        extra: the part of `total` beside R, before its coefficient.
        values: activations.
    """

    total: Tensor
    squared_error: Tensor
    extra: Tensor
    values: Float[Tensor, "token d_sae"]


class Architecture:
    """What all kinds share."""

    name = ""
    stored_as = ""  # SAELens' name of the inference form
    sparse = False  # whether `step.sparse_step` computes its gradients
    dead_rule = "resample"  # what wakes dead features: resample, push (in the loss) or aux

    def __init__(self, config: LayerConfig):
        self.config = config

    def start(self, W_enc: Tensor, W_dec: Tensor) -> Parameters:
        """Parameters before training; matrices are given."""
        d_sae, d_in = W_dec.shape
        zeros = W_dec.new_zeros
        return {"W_enc": W_enc, "b_enc": zeros(d_sae), "W_dec": W_dec, "b_dec": zeros(d_in)}

    def loss(
        self, x: Float[Tensor, "token d_in"], p: Parameters, dead: Tensor, sparsity: float
    ) -> Loss:
        """The loss of a batch.

        Args:
            x: scaled activations.
            p: parameters.
            dead: indices of dead features.
            sparsity: coefficient of the sparsity penalty now (the TopK family has none).
        """
        raise NotImplementedError

    @staticmethod
    def preactivations(x: Tensor, p: Parameters) -> Float[Tensor, "token d_sae"]:
        return (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]

    @staticmethod
    def _loss(x: Tensor, p: Parameters, values: Tensor, extra: Tensor, coefficient: float) -> Loss:
        error = x - values @ p["W_dec"] - p["b_dec"]
        squared = error.square().sum()
        total = squared / x.numel() + coefficient * extra
        return Loss(total, squared.detach(), extra.detach(), values)

    def inference(self, p: Parameters, scale: Tensor) -> dict[str, Any]:
        """The fields of the trained `Dictionary`, in model units.

        Dividing what is added to a preactivation by the scale of the input is all that folding
        takes: every preactivation shrinks alike, and rows of W_dec keep norm 1.
        """
        fields = {
            name: value / scale if value.dim() == 1 and name != "r_mag" else value.clone()
            for name, value in p.items()
        }
        fields["W_enc"] = p["W_enc"].T.contiguous()
        return {"architecture": self.stored_as, **fields}


class Standard(Architecture):
    """ReLU with L1 (Cunningham et al. 2023, 2309.08600).

    v = relu(pre);  L = R + sparsity * sum_f v_f |W_dec[f]| / (n d)
    """

    name = stored_as = "standard"

    def loss(
        self, x: Float[Tensor, "token d_in"], p: Parameters, dead: Tensor, sparsity: float
    ) -> Loss:
        values = self.preactivations(x, p).relu()
        penalty = (values * p["W_dec"].norm(dim=1)).sum() / x.numel()
        return self._loss(x, p, values, penalty, sparsity)


class JumpReLU(Architecture):
    """A threshold per feature, learned through a step (Rajamanoharan et al. 2024, 2407.14435).

    v = pre where pre > threshold, else 0;  L = R + sparsity * sum_f 1[pre_f > threshold_f] / (n d)
        + dead_coefficient * sum over dead f of relu(threshold_f - pre_f) / (n d)

    Gradients of the steps are those of a window of width `bandwidth` (straight_through.py).  The
    threshold itself is the parameter: its logarithm learns too slowly, bfloat16 stops it.
    """

    name = stored_as = "jumprelu"
    dead_rule = "push"

    def start(self, W_enc: Tensor, W_dec: Tensor) -> Parameters:
        threshold = W_dec.new_full((len(W_dec),), self.config.threshold)
        return {**super().start(W_enc, W_dec), "threshold": threshold}

    def loss(
        self, x: Float[Tensor, "token d_in"], p: Parameters, dead: Tensor, sparsity: float
    ) -> Loss:
        pre, bandwidth = self.preactivations(x, p), self.config.bandwidth
        threshold = p["threshold"]
        active = step_function(pre, threshold, bandwidth)
        push = (threshold - pre)[:, dead].relu().sum() * self.config.aux_coefficient
        extra = (active.sum() * sparsity + push) / x.numel()
        return self._loss(x, p, jump_relu(pre, threshold, bandwidth), extra, 1.0)


class Gated(Architecture):
    """Which features and how strongly, apart (Rajamanoharan et al. 2024, 2404.16014).

    g = c W_enc^T + b_gate,  m = c W_enc^T * exp(r_mag) + b_mag,  v = relu(m) where g > 0
    L = R + sparsity * sum_f relu(g_f) |W_dec[f]| / (n d) + |x - relu(g) W_dec - b_dec|^2 / (n d)

    with W_dec and b_dec of the last term held constant.
    """

    name = stored_as = "gated"

    def start(self, W_enc: Tensor, W_dec: Tensor) -> Parameters:
        parameters = super().start(W_enc, W_dec)
        zeros = parameters.pop("b_enc")
        biases = {name: zeros.clone() for name in ("b_gate", "r_mag", "b_mag")}
        return {**parameters, **biases}

    def loss(
        self, x: Float[Tensor, "token d_in"], p: Parameters, dead: Tensor, sparsity: float
    ) -> Loss:
        products = (x - p["b_dec"]) @ p["W_enc"].T
        gate = products + p["b_gate"]
        values = (products * p["r_mag"].exp() + p["b_mag"]).relu() * (gate > 0)
        gate = gate.relu()
        penalty = (gate * p["W_dec"].norm(dim=1)).sum() * sparsity
        rebuilt = gate @ p["W_dec"].detach() + p["b_dec"].detach()
        extra = (penalty + (x - rebuilt).square().sum()) / x.numel()
        return self._loss(x, p, values, extra, 1.0)


class TopK(Architecture):
    """k features per token, and dead ones explain the rest (Gao et al. 2024, 2406.04093).

    v = relu of the k largest pre of each token;  L = R + aux_coefficient * A
    A = sum |e - e'|^2 / sum |e|^2,  e = x - x' held constant,
    e' = (the aux_k largest pre among dead features) W_dec

    (appendix A.2; dead features keep their sign, so one with a negative pre is pushed as well).
    """

    name = stored_as = "topk"
    sparse = True
    dead_rule = "aux"

    def ends(self) -> list[int]:
        """Numbers of features of the nested dictionaries; all but Matryoshka have one."""
        return [self.config.d_sae]

    def choose(self, kernels: Reference, pre: Float[Tensor, "token d_sae"]) -> Pairs:
        """The active (token, feature) pairs."""
        return kernels.largest(pre, self.config.k)

    def activate(self, pre: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """The same, as dense activations."""
        values, places = pre.topk(self.config.k, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, places, values.relu())

    def loss(
        self, x: Float[Tensor, "token d_in"], p: Parameters, dead: Tensor, sparsity: float
    ) -> Loss:
        pre, ends = self.preactivations(x, p), self.ends()
        values = self.activate(pre)
        total = x.new_zeros(())
        error = x - p["b_dec"]
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            error = error - values[:, first:end] @ p["W_dec"][first:end]
            total = total + error.square().sum() / (x.numel() * len(ends))
        aux = self._aux(pre, error.detach(), p, dead)
        total = total + self.config.aux_coefficient / len(ends) * aux
        return Loss(total, error.detach().square().sum(), aux.detach(), values)

    def _aux(self, pre: Tensor, error: Tensor, p: Parameters, dead: Int[Tensor, " dead"]) -> Tensor:
        if not (len(dead) and self.config.aux_k and self.config.aux_coefficient):
            return pre.new_zeros(())
        values, places = pre[:, dead].topk(min(self.config.aux_k, len(dead)), dim=1)
        rebuilt = torch.zeros_like(pre[:, dead]).scatter(1, places, values) @ p["W_dec"][dead]
        scale = error.square().sum().clamp_min(torch.finfo(error.dtype).tiny)
        return (error - rebuilt).square().sum() / scale


class BatchTopK(TopK):
    """k features per token on average over the batch (Bussmann et al. 2024, 2412.06410).

    v = relu of the n k largest pre of all n tokens; L as TopK.  In use a feature is active above
    one threshold, the running mean of each batch's smallest v (JumpReLU form, as in SAELens).
    """

    name, stored_as = "batchtopk", "jumprelu"

    def choose(self, kernels: Reference, pre: Float[Tensor, "token d_sae"]) -> Pairs:
        return kernels.largest_of_batch(pre, self.config.k * len(pre))

    def activate(self, pre: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        count = min(self.config.k * len(pre), pre.numel())
        bound = pre.flatten().topk(count).values[-1].detach()
        return pre.relu() * (pre >= bound)

    def inference(self, p: Parameters, scale: Tensor) -> dict[str, Any]:
        fields = super().inference({n: v for n, v in p.items() if n != "threshold"}, scale)
        return {**fields, "threshold": (p["threshold"] / scale).expand(len(p["b_enc"])).clone()}


class Matryoshka(BatchTopK):
    """BatchTopK whose first features alone reconstruct, too (Bussmann et al. 2025, 2503.17547).

    L = (sum over n prefixes of R with the features of that prefix alone + aux_coefficient * A) / n

    (the paper's sum; divided, so that L does not grow with n).
    """

    name = "matryoshka"

    def ends(self) -> list[int]:
        d_sae = self.config.d_sae
        return sorted({max(1, round(share * d_sae)) for share in self.config.prefixes} | {d_sae})


CLASS_OF: dict[str, type[Architecture]] = {
    kind.name: kind for kind in (TopK, BatchTopK, Matryoshka, JumpReLU, Gated, Standard)
}
