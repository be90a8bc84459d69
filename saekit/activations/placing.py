"""Rows of activations to their places in the shuffle buffer, looked at on the way."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.native.library import library

SOURCE = "placing"


def place_rows(
    source: Float[Tensor, "row d"],
    rows: Int[Tensor, " n"],
    places: Int[Tensor, " n"],
    out: Float[Tensor, "place d"],
) -> Float[Tensor, ""]:
    """Copies rows of `source` to places in `out`, converted to its type.

    Returns:
        A number that is finite if all that was copied is.
    """
    functions = library(SOURCE) if source.device.type == "cpu" else None
    narrow = source.dtype == out.dtype == torch.bfloat16
    if functions and narrow and source.is_contiguous() and out.is_contiguous():
        finite = functions.place_rows(source, rows, places, len(rows), source.shape[1], out)
        return torch.tensor(0.0 if finite else torch.nan)
    chosen = source.index_select(0, rows)
    out.index_copy_(0, places, chosen.to(out.dtype))
    return chosen.sum(dtype=torch.float32)  # not finite if one of its terms is not
