"""The sparse arithmetic of a training step in plain PyTorch, for any device.

A batch of n tokens has *pairs* (token, feature): those of token t stand at `starts[t]` to
`starts[t + 1]` of `features`, in ascending order of features.  Prefix p of a dictionary is its
first `ends[p]` features; all but Matryoshka dictionaries have a single prefix, the whole.

    v = pre[pair], or its positive part              pre = inputs[t] . W_enc[f] + b_enc[f]
    e_p = target - sum over pairs below ends[p] of v W_dec[f]
    L = sum_p -scale_p / 2 |e_p|^2                   so d L / d reconstruction = scale_p e_p

and for a pair whose feature starts in prefix p:  upstream_p = sum_{q >= p} scale_q e_q  is the
gradient of what it writes, slope = upstream_p . W_dec[f] that of its value (0 where v was cut).
Sums are float32.  On the CPU W_enc and W_dec may be bfloat16, then so is `upstream`, as are the
inputs of `weight_gradients`: reading them takes most of the time.
No [token, d_sae] gradient exists (Gao et al. 2024, 2406.04093, appendix D).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# private to PyTorch: a version without it gathers rows, a part of the pairs at a time
_BAG_PRODUCTS = getattr(torch.ops.aten, "_embedding_bag_per_sample_weights_backward", None)
_GATHERED = 1 << 16


@dataclass
class Pairs:
    """The chosen (token, feature) pairs of a batch; see the module's docstring."""

    features: Int[Tensor, " pair"]
    starts: Int[Tensor, " tokens_plus_1"]

    @property
    def tokens(self) -> int:
        return len(self.starts) - 1

    def owners(self) -> Int[Tensor, " pair"]:
        """The token of each pair."""
        ids = torch.arange(self.tokens, device=self.starts.device)
        return ids.repeat_interleave(self.starts.diff(), output_size=len(self.features))


@dataclass
class SparsePass:
    """What `forward_backward` gives; names as in the module's docstring."""

    values: Float[Tensor, " pair"]
    slopes: Float[Tensor, " pair"]
    errors: Float[Tensor, "prefix token d_in"]
    upstream: Float[Tensor, "prefix token d_in"]
    squared: Float[Tensor, "prefix token"]


def pair_products(
    x: Float[Tensor, "token d"], table: Float[Tensor, "row d"], pairs: Pairs
) -> Float[Tensor, " pair"]:
    """x[token] . table[feature] of each pair, without materialising the gathered rows.

    This is what `embedding_bag` computes as the gradient of its `per_sample_weights`.
    """
    features, owners = pairs.features.long(), pairs.owners()
    if _BAG_PRODUCTS is None:
        parts = zip(owners.split(_GATHERED), features.split(_GATHERED), strict=True)
        return torch.cat([(x[own] * table[chosen]).sum(1) for own, chosen in parts])
    return _BAG_PRODUCTS(x.contiguous(), table, features, pairs.starts[:-1], owners, 0, -1)


def weighted_rows(
    table: Float[Tensor, "row d"], pairs: Pairs, weights: Float[Tensor, " pair"]
) -> Float[Tensor, "token d"]:
    """For each token, the sum over its pairs of weight * table[feature]: the sparse decoder."""
    features = pairs.features.long()
    return F.embedding_bag(
        features, table, pairs.starts[:-1], per_sample_weights=weights, mode="sum"
    )


class Reference:
    """The functions; `Cpu` and `Cuda` replace them by faster ones with equal results."""

    def centre_rows(
        self,
        x: Float[Tensor, "token d_in"],
        scale: Tensor,
        centre: Float[Tensor, " d_in"],
        out: Float[Tensor, "token d_in"],
        narrow: Float[Tensor, "token d_in"] | None = None,
    ) -> None:
        """Puts scale x - centre into `out`, and its bfloat16 copy into `narrow`."""
        out.copy_(x).mul_(scale).sub_(centre)  # in float32, also for bfloat16 rows
        if narrow is not None:
            narrow.copy_(out)

    def largest(self, pre: Float[Tensor, "token d_sae"], k: int) -> Pairs:
        """The k largest preactivations of each token.  Ties are broken arbitrarily."""
        chosen = pre.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        starts = torch.arange(0, chosen.numel() + 1, k, device=pre.device)
        return Pairs(chosen.flatten().int(), starts)

    def largest_of_batch(self, pre: Float[Tensor, "token d_sae"], count: int) -> Pairs:
        """The positive preactivations among the `count` largest of the whole batch.

        Those equal to the smallest of them are all taken.
        """
        bound = pre.flatten().topk(min(count, pre.numel())).values[-1]
        return self._chosen((pre >= bound) & (pre > 0))

    @staticmethod
    def _chosen(mask: Tensor) -> Pairs:
        starts = F.pad(mask.sum(1).cumsum(0), (1, 0))
        return Pairs(mask.nonzero()[:, 1].int(), starts)

    def forward_backward(
        self,
        inputs: Float[Tensor, "token d_in"],
        target: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        pairs: Pairs,
        ends: list[int],
        scales: Sequence[float | Tensor],
        rectify: bool = True,
    ) -> SparsePass:
        """Values, errors and slopes; `rectify` cuts negative values to 0."""
        dtype, W_enc, W_dec = W_enc.dtype, W_enc.float(), W_dec.float()
        values = pair_products(inputs, W_enc, pairs) + b_enc[pairs.features.long()]
        if rectify:
            values = values.relu()
        errors, upstream = [], []
        for end in ends:
            inside = values if len(ends) == 1 else values * (pairs.features < end)
            errors.append(target - weighted_rows(W_dec, pairs, inside))
        for scale, error in zip(reversed(scales), reversed(errors), strict=True):
            upstream.insert(0, error * scale + (upstream[0] if upstream else 0))
        slopes = torch.zeros_like(values)
        for first, end, up in zip([0, *ends[:-1]], ends, upstream, strict=True):
            here = (pairs.features >= first) & (pairs.features < end)
            slopes += pair_products(up, W_dec, pairs) * here
        if rectify:
            slopes *= values > 0
        stacked = torch.stack(errors)
        upstream = torch.stack(upstream).to(dtype)
        return SparsePass(values, slopes, stacked, upstream, stacked.square().sum(2))

    def weight_gradients(
        self,
        inputs: Float[Tensor, "token d_in"],
        result: SparsePass,
        pairs: Pairs,
        ends: list[int],
        gradients: dict[str, Tensor],
        add: bool = False,
    ) -> Int[Tensor, " d_sae"]:
        """Gradients of W_enc, b_enc and W_dec, written to (or added to) `gradients`.

        Returns:
            In how many tokens each feature has a value above 0.
        """
        d_sae = len(gradients["b_enc"])
        owners, features = pairs.owners(), pairs.features.long()
        order = features.argsort(stable=True)
        counts = torch.bincount(features, minlength=d_sae)
        starts = counts.cumsum(0) - counts
        tokens = owners[order]

        def rows(source: Tensor, weights: Tensor) -> Tensor:
            weights = weights[order]
            source = source.float()
            return F.embedding_bag(tokens, source, starts, per_sample_weights=weights, mode="sum")

        W_dec = torch.zeros_like(gradients["W_dec"])
        for first, end, up in zip([0, *ends[:-1]], ends, result.upstream, strict=True):
            here = (features >= first) & (features < end)
            W_dec += rows(up, result.values * here)
        b_enc = torch.zeros_like(gradients["b_enc"]).index_add_(0, features, result.slopes)
        found = {"W_enc": rows(inputs, result.slopes), "b_enc": b_enc, "W_dec": W_dec}
        for name, value in found.items():
            if add:
                gradients[name] += value
            else:
                gradients[name].copy_(value)
        return torch.bincount(features, (result.values > 0).float(), minlength=d_sae).long()

    def combine_rows(
        self, matrix: Float[Tensor, "row d"], weights: Float[Tensor, " row"]
    ) -> Float[Tensor, " d"]:
        """weights @ matrix, in float32."""
        return weights @ matrix.float()

    def adam_rows(
        self,
        weights: Float[Tensor, "row d"],
        gradient: Float[Tensor, "row d"],
        mean: Float[Tensor, "row d"],
        square: Float[Tensor, "row d"],
        lr: float,
        step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        unit: bool = False,
        shadow: Float[Tensor, "row d"] | None = None,
    ) -> None:
        """Adam (Kingma & Ba 2014, 1412.6980) in place; `step` counts from 1.

        `unit`: the part of the gradient along a row, which normalising would undo, is left out,
        and rows have norm 1 afterwards.  `shadow` becomes the bfloat16 copy of the weights.
        """
        if unit:
            along = (gradient * weights).sum(1, keepdim=True)
            gradient = torch.addcmul(gradient, along, weights, value=-1)
        mean.lerp_(gradient, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        divisor = (square.sqrt() / (1 - betas[1] ** step) ** 0.5).add_(eps)
        weights.addcdiv_(mean, divisor, value=-lr / (1 - betas[0] ** step))
        if unit:
            weights /= torch.linalg.vector_norm(weights, dim=1, keepdim=True).clamp_min(1e-30)
        if shadow is not None:
            shadow.copy_(weights)
