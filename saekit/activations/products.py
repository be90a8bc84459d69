"""Linear layers in bfloat16: what a forward pass spends its time on.

On processors with AVX512-BF16 by products.cpp, which is 3 to 10% faster than oneDNN at GPT-2's
shapes, elsewhere by oneDNN.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.native.library import Functions, library

SOURCE = "products"
PANELS, _PANEL = 32, 16  # outputs must be a multiple of the first
_LONGEST = 1024  # inputs; with more, rows leave the cache and oneDNN is faster


def linear(
    W: Float[Tensor, "inputs outputs"], b: Float[Tensor, " outputs"], rows: int, gelu: bool = False
) -> "Product | OneDnn":
    """The fastest form of a layer, y = x W + b or GELU (with tanh) of it.

    Args:
        W, b: of the layer; a snapshot is kept.
        rows: of x, most of the time.
        gelu: whether GELU follows.
    """
    functions = library(SOURCE)
    inputs, outputs = W.shape
    fits = inputs % 2 == 0 and outputs % PANELS == 0 and inputs <= _LONGEST
    if fits and functions and functions.supported():
        return Product(W, b, gelu, functions)
    return OneDnn(W, b, rows, gelu)


def in_panels(rows: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "panel pair panels two"]:
    """Weights as tiles.h reads them; `inputs` is even, `outputs` a multiple of 32."""
    outputs, inputs = rows.shape
    return rows.reshape(outputs // _PANEL, _PANEL, inputs // 2, 2).transpose(1, 2).contiguous()


class Product:
    """By products.cpp."""

    def __init__(self, W: Tensor, b: Tensor, gelu: bool, functions: Functions):
        self.inputs, self.outputs = W.shape
        self.weight = in_panels(W.T.bfloat16())
        self.bias = b.float().contiguous()
        self.gelu, self._c = gelu, functions

    def __call__(self, x: Float[Tensor, "row inputs"]) -> Float[Tensor, "row outputs"]:
        """bfloat16 to bfloat16."""
        out = torch.empty(len(x), self.outputs, dtype=torch.bfloat16)
        self._c.product(
            x, self.weight, self.bias, len(x), self.inputs, self.outputs, self.gelu, out
        )
        return out


class OneDnn:
    """By oneDNN."""

    def __init__(self, W: Tensor, b: Tensor, rows: int, gelu: bool):
        weight = W.T.contiguous().bfloat16()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = b.bfloat16()
        self.after = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def __call__(self, x: Float[Tensor, "row inputs"]) -> Float[Tensor, "row outputs"]:
        """bfloat16 to bfloat16."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.after)
