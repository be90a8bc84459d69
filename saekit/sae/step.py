"""One training step's arithmetic for a TopK dictionary, touching only the active features.

The loss of a batch of n tokens x (scaled to unit variance per dimension, so it is about the FVU)

    L = sum |x - x'|^2 / (n d)  +  aux_coefficient * sum |e - e'|^2 / sum |e|^2

    v = the k largest of (x - b_dec) W_enc^T + b_enc, then relu;   x' = v W_dec + b_dec
    e = x - x' (held constant);   e' = the aux_k largest preactivations among dead features, W_dec

(Gao et al. 2024, 2406.04093, AuxK of appendix A.2; dead features keep their sign, so one with a
negative preactivation is pushed as well).  Only the encoder product is dense.  Its result is used
to *choose*; the chosen preactivations are computed again in float32, decoding and both weight
gradients are weighted sums of rows (`embedding_bag`), and no [tokens, d_sae] gradient exists.
Here both matrices are stored with one row per feature: W_enc is [d_sae, d_in].
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16
from torch import Tensor

_GROUPS = 8  # columns per group in the selection
_DIRECT = 512  # numpy's vectorised partition is fastest up to about this many columns


@dataclass
class Weights:
    """Parameters or gradients of one dictionary in training layout."""

    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]

    def tensors(self) -> list[Tensor]:
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]


@dataclass
class StepResult:
    """What one batch gave.

    Attributes:
        gradients: of the loss.
        squared_error: sum of |x - x'|^2 (a scalar tensor).
        aux_loss: the auxiliary loss before its coefficient.
        features: chosen features per token.
        values: their activations, >= 0.
    """

    gradients: Weights
    squared_error: Tensor
    aux_loss: Tensor
    features: Int[Tensor, "token k"]
    values: Float[Tensor, "token k"]


def _largest_int16(values: Int16[Tensor, "token n"], k: int) -> Int[Tensor, "token k"]:
    """Indices of the k largest entries of each row, in no order (CPU, n < 65536).

    The k largest entries lie in at most k groups: those with the k largest maxima.  So choose
    groups first, then entries inside them.  The partition sorts int32 keys that carry the index
    in their low half: 8 times faster than `torch.topk` for 4096 columns.
    """
    tokens, n = values.shape
    candidates: Tensor | None = None
    if n > _DIRECT and n % _GROUPS == 0 and n // _GROUPS >= 2 * k:
        width = n // _GROUPS  # group g holds columns g, g + width, g + 2 width, ...
        groups = _largest_int16(values.view(tokens, _GROUPS, width).amax(1), k)
        steps = torch.arange(0, n, width)[None, :, None]
        candidates = (groups[:, None, :] + steps).flatten(1)
        values = values.gather(1, candidates)
    places = torch.arange(values.shape[1], dtype=torch.int32)
    keys = torch.add(places, values.int(), alpha=1 << 16).numpy()
    cut = keys.shape[1] - k
    keys.partition(cut, axis=1)
    chosen = torch.from_numpy(keys[:, cut:].astype(np.int64) & 0xFFFF)
    return chosen if candidates is None else candidates.gather(1, chosen)


def largest(pre: Float[Tensor, "token n"], k: int) -> Int[Tensor, "token k"]:
    """Indices of the k largest preactivations of each token, in no order.

    Ties are broken arbitrarily.  If fewer than k are positive, which of the others are taken is
    not defined (they become activation 0).
    """
    if pre.dtype == torch.bfloat16 and pre.device.type == "cpu" and pre.shape[1] < 1 << 16:
        # positive bfloat16 numbers are ordered as their bit patterns; negative ones come below
        return _largest_int16(pre.view(torch.int16), k)
    return pre.topk(k, dim=1, sorted=False).indices


def pair_products(
    x: Float[Tensor, "token d"], table: Float[Tensor, "row d"], indices: Int[Tensor, "token k"]
) -> Float[Tensor, "token k"]:
    """x[t] . table[indices[t, j]] without materialising the gathered rows.

    This is what `embedding_bag` computes as the gradient of its `per_sample_weights`.
    """
    tokens, k = indices.shape
    starts = torch.arange(0, tokens * k, k, device=x.device)
    owner = torch.arange(tokens, device=x.device).repeat_interleave(k)
    flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, table, indices.reshape(-1), starts, owner, 0, -1
    )
    return flat.view(tokens, k)


def weighted_rows(
    table: Float[Tensor, "row d"],
    indices: Int[Tensor, "token k"],
    weights: Float[Tensor, "token k"],
) -> Float[Tensor, "token d"]:
    """sum_j weights[t, j] * table[indices[t, j]]: the sparse decoder."""
    return F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")


class PairsByFeature:
    """(token, feature) pairs sorted by feature, to sum over the tokens of each feature."""

    def __init__(self, features: Int[Tensor, "token k"], d_sae: int):
        k = features.shape[1]
        flat = features.flatten().int()  # int32 sorts twice as fast as int64
        _, self.order = flat.sort()
        self.flat, self.d_sae = features.flatten(), d_sae
        self.tokens = self.order.div(k, rounding_mode="floor")
        counts = torch.bincount(self.flat, minlength=d_sae)
        self.starts = counts.cumsum(0) - counts

    def rows(
        self, source: Float[Tensor, "token d"], weights: Float[Tensor, "token k"]
    ) -> Float[Tensor, "d_sae d"]:
        """For each feature, sum over its pairs of weight * source[token]."""
        sorted_weights = weights.flatten()[self.order]
        return F.embedding_bag(
            self.tokens, source, self.starts, per_sample_weights=sorted_weights, mode="sum"
        )

    def sums(self, weights: Float[Tensor, "token k"]) -> Float[Tensor, " d_sae"]:
        """For each feature, the sum of its weights."""
        out = torch.zeros(self.d_sae, dtype=weights.dtype, device=weights.device)
        return out.index_add_(0, self.flat, weights.flatten())


@torch.no_grad()
def sparse_step(
    x: Float[Tensor, "token d_in"],
    weights: Weights,
    k: int,
    dead: Int[Tensor, " dead"] | None = None,
    aux_k: int = 64,
    aux_coefficient: float = 1 / 32,
    pre: Float[Tensor, "token d_sae"] | None = None,
    W_enc_shadow: Float[Tensor, "d_sae d_in"] | None = None,
) -> StepResult:
    """Loss and gradients of one batch.

    Args:
        x: scaled activations.
        weights: the parameters.
        k: active features per token.
        dead: indices of dead features, None or empty for no auxiliary loss.
        aux_k: dead features per token.
        aux_coefficient: weight of the auxiliary loss.
        pre: memory for the encoder product (its first use costs more than the product itself).
        W_enc_shadow: a bfloat16 copy of W_enc for the dense product; None computes in float32.
    """
    tokens, d_in = x.shape
    d_sae = weights.W_enc.shape[0]
    centred = x - weights.b_dec
    if W_enc_shadow is None:
        pre = torch.addmm(weights.b_enc, centred, weights.W_enc.T, out=pre)
    else:
        narrow, bias = centred.bfloat16(), weights.b_enc.bfloat16()
        pre = torch.addmm(bias, narrow, W_enc_shadow.T, out=pre)
    features = largest(pre, k)
    values = pair_products(centred, weights.W_enc, features) + weights.b_enc[features]
    values.relu_()
    error = x - weighted_rows(weights.W_dec, features, values) - weights.b_dec

    # d loss / d reconstruction, then the chain rule for each active pair
    upstream = error * (-2 / (tokens * d_in))
    slopes = pair_products(upstream, weights.W_dec, features)
    slopes *= values > 0
    pairs = PairsByFeature(features, d_sae)
    gradients = Weights(
        W_enc=pairs.rows(centred, slopes),
        b_enc=pairs.sums(slopes),
        W_dec=pairs.rows(upstream, values),
        b_dec=upstream.sum(0),
    )
    squared_error = error.square().sum()
    aux_loss = torch.zeros((), device=x.device)
    if dead is not None and len(dead) and aux_k and aux_coefficient:
        aux_loss = _add_aux(
            gradients, weights, centred, error, squared_error, dead, aux_k, aux_coefficient
        )
    gradients.b_dec -= gradients.b_enc @ weights.W_enc  # b_dec is also subtracted from the input
    return StepResult(gradients, squared_error, aux_loss, features, values)


def _add_aux(
    gradients: Weights,
    weights: Weights,
    centred: Tensor,
    error: Tensor,
    squared_error: Tensor,
    dead: Tensor,
    aux_k: int,
    coefficient: float,
) -> Tensor:
    """Add the auxiliary loss' gradients in place; returns that loss."""
    W_enc, W_dec = weights.W_enc[dead], weights.W_dec[dead]
    pre = torch.addmm(weights.b_enc[dead], centred, W_enc.T)
    values, chosen = pre.topk(min(aux_k, len(dead)), dim=1, sorted=False)
    scale = squared_error.clamp_min(torch.finfo(error.dtype).tiny)
    remaining = error - weighted_rows(W_dec, chosen, values)
    upstream = remaining * (-2 * coefficient / scale)
    slopes = pair_products(upstream, W_dec, chosen)
    pairs = PairsByFeature(chosen, len(dead))
    gradients.W_enc.index_add_(0, dead, pairs.rows(centred, slopes))
    gradients.b_enc.index_add_(0, dead, pairs.sums(slopes))
    gradients.W_dec.index_add_(0, dead, pairs.rows(upstream, values))
    return remaining.square().sum() / scale
