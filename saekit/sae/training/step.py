"""One training step's gradients: sparse for the TopK family, by autograd for the others.

`sparse_step` gives the gradients of the losses in architectures.py (a test holds both equal) while
touching only the active features.  Only the encoder product is dense, and only used to *choose*
(operands.py).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saekit.sae.kernels import Reference, SparsePass
from saekit.sae.training.architectures import Architecture, Parameters, TopK
from saekit.sae.training.operands import Float32, Scratch


@dataclass
class StepResult:
    """What one batch gave, beside the gradients.

    Attributes:
        squared_error: sum of |x - x'|^2 (a scalar tensor).
        extra: the auxiliary loss or penalty, as `architectures.Loss.extra`.
        fired: in how many tokens each feature was active.
        smallest: the smallest preactivation that was chosen, where a threshold is stored; else
            infinite.
    """

    squared_error: Tensor
    extra: Tensor
    fired: Int[Tensor, " d_sae"]
    smallest: Tensor


class DeadFeatures:
    """Which features are dead, without the host waiting for a CUDA device.

    How many there are decides about shapes.  On CUDA the end of a step sends their number to the
    host, and the layer's next step, before which all other layers have theirs, finds it there.
    """

    def __init__(self, tokens: int):
        """
        Args:
            tokens: a feature is dead when it was not active for so many.
        """
        self.tokens = tokens
        self._told: tuple[Tensor, int, Tensor, torch.cuda.Event] | None = None

    def tell(self, since_fired: Int[Tensor, " d_sae"]) -> None:
        """Send the number of dead features to the host; on the CPU there is nothing to do."""
        if not since_fired.is_cuda:
            return
        number = torch.empty((), dtype=torch.long, pin_memory=True)
        number.copy_((since_fired >= self.tokens).sum(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(since_fired.device))
        self._told = since_fired, since_fired._version, number, event

    def indices(self, since_fired: Int[Tensor, " d_sae"]) -> Int[Tensor, " dead"]:
        """The dead features, in ascending order."""
        dead = since_fired >= self.tokens
        if self._told is not None:
            told, version, number, event = self._told
            if told is since_fired and version == since_fired._version:  # nothing else wrote to it
                event.synchronize()
                return first_true(dead, int(number))
        return dead.nonzero().squeeze(1)


def first_true(mask: Bool[Tensor, " d_sae"], count: int) -> Int[Tensor, " dead"]:
    """The places of the first `count` true entries: `nonzero` where their number is known."""
    places = mask.cumsum(0) - 1
    found = torch.zeros(count + 1, dtype=torch.long, device=mask.device)
    places = torch.where(mask & (places < count), places, count)  # all others into one more place
    return found.scatter_(0, places, torch.arange(len(mask), device=mask.device))[:count]


@torch.no_grad()
def sparse_step(
    x: Float[Tensor, "token d_in"],
    p: Parameters,
    kind: TopK,
    dead: Int[Tensor, " dead"],
    kernels: Reference,
    scratch: Scratch,
    operands: Float32 | None = None,
    scale: Float[Tensor, ""] | None = None,
) -> tuple[Parameters, StepResult]:
    """Gradients and figures of one batch.

    Args:
        x: activations, float32 or bfloat16.
        p: the parameters.
        kind: one of the TopK family.
        dead: indices of dead features.
        kernels: how sums are computed.
        scratch: memory; the gradients stay there until the next step.
        operands: what types numbers have; None is float32.
        scale: what `x` is multiplied by first; None for 1.
    """
    scale = x.new_ones((), dtype=torch.float32) if scale is None else scale
    batch = (operands or Float32())(x, scale, p, kernels, scratch)
    pairs, ends = kind.choose(kernels, batch.pre), kind.ends()
    scales = [-2 / (x.numel() * len(ends))] * len(ends)
    result = kernels.forward_backward(
        batch.centred, batch.centred, batch.W_enc, p["b_enc"], batch.W_dec, pairs, ends, scales
    )
    gradients = {name: scratch(name, *p[name].shape) for name in ("W_enc", "b_enc", "W_dec")}
    fired = kernels.weight_gradients(batch.inputs, result, pairs, ends, gradients)
    squared = result.squared[-1].sum()
    extra = torch.zeros((), device=x.device)
    config = kind.config
    if len(dead) and config.aux_k and config.aux_coefficient:
        extra = _add_aux(gradients, batch.centred, result, squared, p, dead, kind, kernels)
    # b_dec stands in every prefix's reconstruction, and is subtracted from the input
    through_input = kernels.combine_rows(batch.W_enc, gradients["b_enc"])
    gradients["b_dec"] = result.upstream[0].sum(0, dtype=torch.float32) - through_input
    smallest = torch.full((), torch.inf, device=x.device)
    if kind.stored_as != kind.name:  # a threshold is stored, their mean
        # of what they were chosen by: the exact values include the worst choice of the batch,
        # and a threshold that low would let a tenth more features be active
        chosen = batch.pre[pairs.owners(), pairs.features.long()].float()
        smallest = F.pad(chosen, (0, 1), value=torch.inf).amin()
    return gradients, StepResult(squared, extra, fired, smallest)


def _add_aux(
    gradients: Parameters,
    centred: Tensor,
    result: SparsePass,
    squared: Tensor,
    p: Parameters,
    dead: Int[Tensor, " dead"],
    kind: TopK,
    kernels: Reference,
) -> Tensor:
    """Add the auxiliary loss' gradients in place; returns that loss."""
    W_enc, b_enc, W_dec = (p[name][dead] for name in ("W_enc", "b_enc", "W_dec"))
    pre = torch.addmm(b_enc, centred, W_enc.T)
    pairs = kernels.largest(pre, min(kind.config.aux_k, len(dead)))
    total = squared.clamp_min(torch.finfo(torch.float32).tiny)
    coefficient = kind.config.aux_coefficient / len(kind.ends())
    scale = (-2 * coefficient / total.double()).float()
    aux = kernels.forward_backward(
        centred, result.errors[-1].contiguous(), W_enc, b_enc, W_dec, pairs,
        [len(dead)], [scale], rectify=False,
    )  # fmt: skip
    own = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec}  # copies: overwritten by gradients
    kernels.weight_gradients(centred, aux, pairs, [len(dead)], own)
    for name, value in own.items():
        gradients[name].index_add_(0, dead, value)
    return (aux.squared.sum() / total).float()


def dense_step(
    x: Float[Tensor, "token d_in"],
    p: Parameters,
    kind: Architecture,
    dead: Int[Tensor, " dead"],
    sparsity: float,
) -> tuple[Parameters, StepResult]:
    """Gradients and figures of one batch by autograd, for any architecture."""
    names = list(p)
    leaves = {name: value.detach().requires_grad_() for name, value in p.items()}
    loss = kind.loss(x, leaves, dead, sparsity)
    found = torch.autograd.grad(loss.total, list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(p[name]) if slope is None else slope
        for name, slope in zip(names, found, strict=True)
    }
    positive = loss.values.detach() > 0
    smallest = torch.full((), torch.inf, device=x.device)
    return gradients, StepResult(loss.squared_error, loss.extra, positive.sum(0), smallest)
