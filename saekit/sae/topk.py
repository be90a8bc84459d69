"""The k largest preactivations by a bfloat16 product, proven to be those of the float32 one.

The dense encoder product and the search through it cost most of encoding.  In bfloat16 the product
is several times as fast on processors that have it; it only *shortlists*: the shortlisted
preactivations are computed again in float32.  With x~ and w~ the rounded token and encoder row, by
Cauchy-Schwarz

    |x . w - x~ . w~|  <=  |x - x~| |w| + |x~| |w - w~|  =  b

and what sums in float32 may be off.  If k features have an x~ . w~ - b of at least t, the k largest
preactivations are among those with x~ . w~ + b >= t.  For t features are dealt to 4 k groups or
more: the k-th largest of the groups' largest x~ . w~ - b (topk.cpp).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saekit.activations.products import PANELS, in_panels
from saekit.native.library import library

SOURCE = "topk"
MIN_TOKENS = 128  # below, what is kept per dictionary costs more than it saves

_ADDITION = 2.0**-23  # of a number and a bias, twice: relative to the bias
_LOST = 2.0**-63  # of a norm, per root of its length: squares below 2**-126 may become 0


def supported() -> bool:
    """Whether this processor multiplies bfloat16 matrices fast."""
    functions = library(SOURCE)
    return functions is not None and bool(functions.supported())


class NarrowTopK:
    """Top-k of x @ W_enc + b_enc for one dictionary; keeps W_enc by rows, 6 bytes a weight."""

    def __init__(self, W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"], k: int):
        """
        Args:
            W_enc, b_enc: float32, on the CPU; a snapshot is kept.
            k: how many.
        """
        self.k = k
        self.d_in, self.d_sae = W_enc.shape
        self.rows = W_enc.detach().T.clone(memory_format=torch.contiguous_format)
        self.bias = self._padded(b_enc.detach(), -torch.inf)
        rounded = self.rows.bfloat16()
        lost = self.rows - rounded
        tiny = self.d_in**0.5 * _LOST
        self.norms, self.rounding = (self._padded(m.norm(dim=1) + tiny) for m in (self.rows, lost))
        self.doubt = self._padded(b_enc.detach().abs() * _ADDITION)
        self.finite = bool((self.norms + self.doubt).isfinite().all())
        even = F.pad(rounded, (0, self.d_in % 2, 0, len(self.bias) - self.d_sae))
        self.panels = in_panels(even)

    def _padded(self, column: Float[Tensor, " d_sae"], value: float = 0.0) -> Tensor:
        return F.pad(column, (0, -self.d_sae % PANELS), value=value)

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "token d_in"]
    ) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """The k largest preactivations of each token, largest first, and their features.

        All values are NaN where a token or a weight is not finite.
        """
        functions = library(SOURCE)
        assert functions is not None, "supported was not asked"
        x, values = x.contiguous(), x.new_empty(len(x), self.k)
        features = torch.empty(len(x), self.k, dtype=torch.int64)
        functions.top_k(
            x, self.panels, self.rows, self.bias, self.doubt, self.norms, self.rounding,
            len(x), self.d_in, len(self.bias), self.k, values, features,
        )  # fmt: skip
        return (values if self.finite else values.fill_(torch.nan)), features
