"""Preactivations that features are chosen by: of all features, so the dearest sum of a step.

Which features are active needs no more than the order of preactivations.  `sparse_step` computes
those of the chosen ones again in float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.sae.architectures import Parameters
from saekit.sae.kernels import Reference, eight_bit
from saekit.sae.scratch import Scratch


class Exact:
    """In float32.

    Attributes:
        shadow: a copy of W_enc that the optimiser has to keep up, if there is one.
    """

    shadow: Tensor | None = None

    def __call__(
        self,
        x: Float[Tensor, "token d_in"],
        scale: Float[Tensor, ""],
        p: Parameters,
        kernels: Reference,
        scratch: Scratch,
    ) -> tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_sae"]]:
        """The input, scaled and centred, in float32, and all preactivations.

        Both are overwritten by the next call.

        Args:
            x: activations, float32 or bfloat16.
            scale: what they are multiplied by.
            p: the parameters.
            kernels: how sums are computed.
            scratch: memory.
        """
        centred = scratch("centred", *x.shape)
        kernels.centre_rows(x, scale, p["b_dec"], centred)
        pre = scratch("pre", len(x), len(p["W_enc"]))
        return centred, torch.addmm(p["b_enc"], centred, p["W_enc"].T, out=pre)


class Bfloat16(Exact):
    """In bfloat16, with a copy of W_enc in it."""

    def __init__(self, W_enc: Float[Tensor, "d_sae d_in"]):
        self.shadow: Tensor = W_enc.bfloat16()

    def __call__(
        self, x: Tensor, scale: Tensor, p: Parameters, kernels: Reference, scratch: Scratch
    ) -> tuple[Tensor, Tensor]:
        """See `Exact`; the preactivations are bfloat16."""
        centred = scratch("centred", *x.shape)
        narrow = scratch("narrow", *x.shape, dtype=torch.bfloat16)
        kernels.centre_rows(x, scale, p["b_dec"], centred, narrow)
        pre = scratch("pre", len(x), len(p["W_enc"]), dtype=torch.bfloat16)
        return centred, torch.addmm(p["b_enc"].bfloat16(), narrow, self.shadow.T, out=pre)


class EightBit(Exact):
    """In 8 bits (see `saekit.sae.kernels.eight_bit`)."""

    def __call__(
        self, x: Tensor, scale: Tensor, p: Parameters, kernels: Reference, scratch: Scratch
    ) -> tuple[Tensor, Tensor]:
        """See `Exact`; the preactivations are bfloat16."""
        centred = scratch("centred", *x.shape)
        kernels.centre_rows(x, scale, p["b_dec"], centred)
        pre = scratch("pre", len(x), len(p["W_enc"]), dtype=torch.bfloat16)
        eight_bit.products(centred, p["W_enc"], p["b_enc"], pre, scratch)
        return centred, pre


def fastest(W_enc: Float[Tensor, "d_sae d_in"]) -> Exact:
    """What is fastest for a dictionary of this size on its device."""
    if W_enc.device.type == "cpu" and eight_bit.supported(W_enc.shape[1], len(W_enc)):
        return EightBit()
    return Bfloat16(W_enc)
