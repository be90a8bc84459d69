"""Which tokens a feature's decoder direction promotes and suppresses.

A direction d written into the stream reaches the logits through the final LayerNorm.  Without the
division by the norm, which is common to all tokens, that is ((d - mean(d)) * gamma_f) W_U; its
mean over the vocabulary changes no probability and is subtracted.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.model.loading import LanguageModel

_ENTRIES = 2**21  # logits computed at once


def output_logits(
    model: LanguageModel, directions: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_vocab"]:
    """Logits per unit of each direction, their vocabulary mean subtracted."""
    decoder = model.decoder
    logits = (decoder.centred(directions) * decoder.gamma_f.float()) @ decoder.W_U.float()
    return logits - logits.mean(-1, keepdim=True)


@torch.no_grad()
def output_tokens(
    model: LanguageModel, W_dec: Float[Tensor, "d_sae d_model"], top: int, bottom: int | None = None
) -> tuple[Int[Tensor, "d_sae top_and_bottom"], Float[Tensor, "d_sae top_and_bottom"]]:
    """The `top` most promoted tokens (highest first), then the `bottom` (default: `top`) most
    suppressed ones (lowest first).

    Returns:
        Token ids and values, both on the CPU.
    """
    tokens, values = [], []
    for rows in W_dec.float().split(max(1, _ENTRIES // model.d_vocab)):
        logits = output_logits(model, rows)
        highest, lowest = logits.topk(top), logits.topk(bottom or top, largest=False)
        tokens.append(torch.cat([highest.indices, lowest.indices], -1).cpu())
        values.append(torch.cat([highest.values, lowest.values], -1).cpu())
    return torch.cat(tokens), torch.cat(values)
