"""What a step multiplies: the types of numbers, and preactivations of all features to choose by.

Which features are active needs no more than the order of preactivations, of all features: the
dearest sum of a step.  Those of the chosen ones are computed again, from the batch's weights.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.sae.kernels import Reference, int8
from saekit.sae.training.architectures import Parameters


class Scratch:
    """Memory that is used again by every step and layer: fresh memory costs more than the sums."""

    def __init__(self, device: torch.device):
        self.device = device
        self._kept: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory of this shape with unknown contents."""
        key = (name, shape, dtype)
        if key not in self._kept:
            self._kept[key] = torch.empty(shape, dtype=dtype, device=self.device)
        return self._kept[key]


@dataclass
class Operands:
    """A batch and the weights in the types that products are taken in.

    Attributes:
        centred: the input, scaled and centred.
        inputs: the same, or its bfloat16 copy, for gradients of W_enc.
        W_enc, W_dec: weights for the chosen features, of the type of `inputs`.
        pre: all preactivations, to choose by.
    """

    centred: Float[Tensor, "token d_in"]
    inputs: Float[Tensor, "token d_in"]
    W_enc: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    pre: Float[Tensor, "token d_sae"]


class Float32:
    """All in float32.

    Attributes:
        copies: bfloat16 copies of parameters, by name, that the optimiser has to keep up.
    """

    def __init__(self) -> None:
        self.copies: Parameters = {}

    def __call__(
        self,
        x: Float[Tensor, "token d_in"],
        scale: Float[Tensor, ""],
        p: Parameters,
        kernels: Reference,
        scratch: Scratch,
    ) -> Operands:
        """The operands of a batch, which the next call overwrites.

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
        torch.addmm(p["b_enc"], centred, p["W_enc"].T, out=pre)
        return Operands(centred, centred, p["W_enc"], p["W_dec"], pre)


class NarrowChoice(Float32):
    """Chosen by bfloat16 products; what is chosen is computed in float32 (on GPUs)."""

    def __init__(self, p: Parameters) -> None:
        self.copies = {"W_enc": p["W_enc"].bfloat16()}

    def __call__(
        self, x: Tensor, scale: Tensor, p: Parameters, kernels: Reference, scratch: Scratch
    ) -> Operands:
        """See `Float32`."""
        centred = scratch("centred", *x.shape)
        narrow = scratch("narrow", *x.shape, dtype=torch.bfloat16)
        kernels.centre_rows(x, scale, p["b_dec"], centred, narrow)
        pre = self._preactivations(centred, narrow, p, scratch)
        return Operands(centred, centred, p["W_enc"], p["W_dec"], pre)

    def _preactivations(
        self, centred: Tensor, narrow: Tensor, p: Parameters, scratch: Scratch
    ) -> Tensor:
        pre = scratch("pre", len(narrow), len(p["W_enc"]), dtype=torch.bfloat16)
        return torch.addmm(p["b_enc"].bfloat16(), narrow, self.copies["W_enc"].T, out=pre)


class NarrowFactors(NarrowChoice):
    """All factors are bfloat16, sums float32 (on CPUs); chosen by 8-bit products where they are
    fast (see `saekit.sae.kernels.int8`)."""

    def __init__(self, p: Parameters) -> None:
        self.copies = {name: p[name].bfloat16() for name in ("W_enc", "W_dec")}
        self.eight_bit = int8.supported(p["W_enc"].shape[1], len(p["W_enc"]))

    def __call__(
        self, x: Tensor, scale: Tensor, p: Parameters, kernels: Reference, scratch: Scratch
    ) -> Operands:
        """See `Float32`."""
        found = super().__call__(x, scale, p, kernels, scratch)
        inputs = scratch("narrow", *x.shape, dtype=torch.bfloat16)
        W_enc, W_dec = self.copies["W_enc"], self.copies["W_dec"]
        return Operands(found.centred, inputs, W_enc, W_dec, found.pre)

    def _preactivations(
        self, centred: Tensor, narrow: Tensor, p: Parameters, scratch: Scratch
    ) -> Tensor:
        if not self.eight_bit:
            return super()._preactivations(centred, narrow, p, scratch)
        pre = scratch("pre", len(narrow), len(p["W_enc"]), dtype=torch.bfloat16)
        int8.products(centred, self.copies["W_enc"], p["b_enc"], pre, scratch)
        return pre
