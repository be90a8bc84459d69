"""The k largest preactivations by a bfloat16 product, proven to be those of the float32 one.

The dense encoder product and the search through it cost most of encoding.  In bfloat16 both are two
to four times as fast on CPUs that have it; it only *shortlists*: the shortlisted preactivations are
computed again in float32.  With x~ and w~ the rounded token and encoder row, by Cauchy-Schwarz

    |x . w - x~ . w~|  <=  |x - x~| |w| + |x~| |w - w~|

so a feature outside the shortlist is below the smallest number in it plus that bound.  Tokens whose
k-th value is not above this get a longer shortlist; if that does not do, the float32 product.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saekit.sae.kernels import Reference, kernels_for

MIN_TOKENS = 128  # below, what is kept per dictionary costs more than it saves
# times k; gpt2-mini's dictionaries: 21% of the tokens need the longer list, 2% the full product
_SHORTLISTS = (2, 8)
_BFLOAT16 = 2.0**-8  # half a unit in the last place is at most this, relatively
_SUMMATION = 1e-5  # of |x| |w|: what sums in float32 may be off


def supported() -> bool:
    """Whether this processor multiplies bfloat16 matrices fast."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class NarrowTopK:
    """Top-k of x @ W_enc + b_enc for one dictionary; keeps W_enc by rows, 6 bytes a weight."""

    def __init__(
        self, W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"], k: int,
        kernels: Reference | None = None,
    ):  # fmt: skip
        """
        Args:
            W_enc, b_enc: float32, on the CPU; a snapshot is kept.
            k: how many.
            kernels: how sums are computed; by default the fastest.
        """
        self.kernels = kernels or kernels_for(W_enc.device)
        self.k, self.W_enc, self.b_enc = k, W_enc.detach(), b_enc.detach()
        self.rows = self.W_enc.T.contiguous()
        self.shadow, self.bias = self.rows.bfloat16(), self.b_enc.bfloat16()
        self.longest = self.rows.norm(dim=1).max()
        self.rounded = (self.rows - self.shadow.float()).norm(dim=1).max()
        self.bias_rounded = (self.b_enc - self.bias.float()).abs().max()

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "token d_in"]
    ) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """The k largest preactivations of each token, largest first, and their features."""
        x = x.contiguous()
        narrow = x.bfloat16()
        pre = torch.addmm(self.bias, narrow, self.shadow.T)
        values = x.new_empty(len(x), self.k)
        features = torch.empty(len(x), self.k, dtype=torch.int64)
        unsure = torch.arange(len(x))
        for times in _SHORTLISTS:
            whole = len(unsure) == len(x)
            part = (x, narrow, pre) if whole else (x[unsure], narrow[unsure], pre[unsure])
            values[unsure], features[unsure], sure = self._listed(*part, times * self.k)
            unsure = unsure[~sure]
            if not len(unsure):
                return values, features
        again = (x[unsure] @ self.W_enc + self.b_enc).topk(self.k, dim=1)
        values[unsure], features[unsure] = again.values, again.indices
        return values, features

    def _listed(
        self,
        x: Float[Tensor, "token d_in"],
        narrow: Float[Tensor, "token d_in"],
        pre: Float[Tensor, "token d_sae"],
        size: int,
    ) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"], Bool[Tensor, " token"]]:
        """The largest of a shortlist of this size, and where they are proven to be the largest."""
        pairs = self.kernels.largest(pre, min(size, pre.shape[1]))
        listed = pairs.features.view(len(x), -1).long()
        exact = self.kernels.products(x, self.rows, self.b_enc, pairs).view(listed.shape)
        values, places = exact.topk(self.k, dim=1)

        smallest = pre.gather(1, listed).amin(1).float()
        wide = narrow.float()
        bound = (
            (x - wide).norm(dim=1) * self.longest
            + wide.norm(dim=1) * (self.rounded + _SUMMATION * self.longest)
            + self.bias_rounded
            + smallest.abs() * _BFLOAT16
        )
        return values, listed.gather(1, places), values[:, -1] > smallest + bound
