"""All paths from one layer to a target at once: the frozen affine map.

With every attention weight, LayerNorm scale and MLP gate ratio rho = act(z) / z held at its value
in this forward pass, the network from layer l to the target's layer L is affine in x_l at all
positions:

    p_t(q) = sum_k x_l(k) . J(k) + constant + sum_m node_m

J is found by one backward sweep, for any number of targets.  Split over a dictionary at layer l,

    p_t(q) = sum_{k,s} f_s(k) d_s . J(k) + sum_k err(k) . J(k) + b_dec . sum_k J(k) + the rest.

MLPs are treated in one of three ways; all are exact, they differ in what counts as a path:

    direct    an MLP's output is a constant, node_m: paths are the residual stream and attention
    frozen    rho is held: paths through MLPs count in full (the default); no nodes
    gradient  the true derivative act'(z) in place of rho: what a small change would do; node_m is
              the curvature that the derivative leaves over

An attribution along frozen paths is not a causal effect (removal.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.errors import InputError
from saekit.model.exact import ExactModel, Forward
from saekit.routes.attribution.arrivals import through_norm
from saekit.routes.target import Target, activations, in_the_stream
from saekit.sae.dictionary import Dictionary

Mode = Literal["direct", "frozen", "gradient"]


@dataclass(frozen=True)
class FrozenMap:
    """The affine map from layer `layer` to one target.

    Attributes:
        J: cotangent of the target at every position of x_layer; 0 behind the query.
        constant: biases on the way, and the target's own constant.
        nodes: what each block's MLP adds as a node; 0 for blocks outside layer .. target.layer.
        mid: cotangent at mid_m of every block from `layer` on (block `layer` first).
    """

    target: Target
    layer: int
    mode: Mode
    J: Float[Tensor, "pos d_model"]
    constant: float
    nodes: Float[Tensor, " block"]
    mid: Float[Tensor, "passed pos d_model"]

    def total(self, clean: Forward) -> float:
        """Equals the pre-activation up to rounding, in every mode."""
        linear = float((clean.resid[self.layer] * self.J).sum())
        return linear + self.constant + float(self.nodes.sum())


def derivative(
    exact: ExactModel, z: Float[Tensor, "*batch d_mlp"]
) -> Float[Tensor, "*batch d_mlp"]:
    """act'(z) = rho + z rho'."""
    rho = exact.gate(z)
    if exact.activation == "relu":
        return rho
    if exact.activation == "gelu":
        return rho + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    # in all others rho is the logistic function of something, whose slope this is
    if exact.activation in ("silu", "quick_gelu"):
        slope: Tensor | float = 1.0 if exact.activation == "silu" else 1.702
    else:
        slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z.square())
    return rho + z * rho * (1 - rho) * slope


def _factors(exact: ExactModel, clean: Forward, m: int, mode: Mode) -> tuple[Tensor, Tensor | None]:
    """What a small change of u, and of a gated MLP's g, does to rho * u, by hidden unit."""
    u, g = clean.pre[m], clean.gate_in[m]
    if mode == "direct":
        return torch.zeros_like(u), None
    if mode == "frozen":
        return clean.rho[m], None
    if exact.blocks[m].W_gate is None:
        return derivative(exact, u), None
    return clean.rho[m], u * derivative(exact, g)


@torch.no_grad()
def frozen_maps(
    exact: ExactModel,
    clean: Forward,
    targets: Sequence[Target],
    layer: int,
    mode: Mode = "frozen",
) -> list[FrozenMap]:
    """The map from `layer` to each target, all in one sweep.

    Args:
        layer: where paths begin; at most the lowest layer of the targets.
        mode: how MLPs are treated (module docstring).

    Raises:
        InputError: unknown mode, or a layer above a target.
    """
    if mode not in get_args(Mode):
        raise InputError(f'"{mode}" is no treatment of MLPs: use {", ".join(get_args(Mode))}.')
    top = max((target.layer for target in targets), default=layer)
    lowest = min((target.layer for target in targets), default=layer)
    if not 0 <= layer <= lowest:
        raise InputError(f"Paths from layer {layer} do not reach a target at layer {lowest}.")
    n = clean.resid.shape[1]
    g = torch.zeros(len(targets), n, exact.d_model).to(clean.resid)
    constant = torch.tensor([t.constant for t in targets], dtype=torch.float64, device=g.device)
    nodes = torch.zeros(len(targets), exact.n_layers).to(g)
    mids = torch.zeros(len(targets), top - layer, n, exact.d_model).to(g)

    def inject(at: int) -> None:
        for row, target in enumerate(targets):
            if target.layer == at:
                g[row, target.query] = target.direction

    for m in reversed(range(layer, top)):
        inject(m + 1)
        w = exact.blocks[m]
        factor, gate_factor = _factors(exact, clean, m, mode)
        written = g @ w.W_out.T  # cotangent of rho * u
        hidden = written * factor
        at_normed = hidden @ w.W_in.T
        if mode == "direct":
            nodes[:, m] = (g * clean.mlp_out[m]).sum((1, 2))
        else:
            constant += g.sum(1) @ w.b_out + hidden.sum(1) @ (w.beta2 @ w.W_in + w.b_in)
        if mode == "gradient":
            left = (clean.rho[m] - factor) * clean.pre[m]
            if gate_factor is not None and w.W_gate is not None and w.b_gate is not None:
                left = left - gate_factor * clean.gate_in[m]
                at_gate = written * gate_factor
                at_normed = at_normed + at_gate @ w.W_gate.T
                constant += at_gate.sum(1) @ (w.beta2 @ w.W_gate + w.b_gate)
            nodes[:, m] = (written * left).sum((1, 2))
        G = g + through_norm(exact, at_normed, w.gamma2, clean.scale2[m])
        mids[:, m - layer] = G
        at_moved = torch.einsum("hdm,tqm->thqd", w.W_O, G)
        at_value = torch.einsum("hqk,thqd->thkd", clean.pattern[m], at_moved)
        constant += G.sum(1) @ w.b_O
        constant += at_value.sum(2).flatten(1) @ _value_constant(w).flatten()
        at_norm = torch.einsum("hde,thke->tkd", w.W_V, at_value)
        g = G + through_norm(exact, at_norm, w.gamma1, clean.scale1[m])
    inject(layer)
    return [
        FrozenMap(target, layer, mode, g[row], float(constant[row]), nodes[row],
                  mids[row, : target.layer - layer])
        for row, target in enumerate(targets)
    ]  # fmt: skip


def _value_constant(w) -> Float[Tensor, "head d_head"]:
    """What reaches a head's value from ln_1's beta and the value bias."""
    return torch.einsum("d,hde->he", w.beta1, w.W_V) + w.b_V


@dataclass(frozen=True)
class PathSplit:
    """A frozen map applied to one prompt, split over a dictionary; the parts sum to p.

    Attributes:
        features: contribution of feature s at position k, 0 where it is not active.
        error: of what the dictionary does not reconstruct at each position.
        decoder_bias: of b_dec at all positions.
        constant, nodes: of the map.
    """

    features: Float[Tensor, "pos d_sae"]
    error: Float[Tensor, " pos"]
    decoder_bias: float
    constant: float
    nodes: float

    @property
    def total(self) -> float:
        linear = float(self.features.sum()) + float(self.error.sum())
        return linear + self.decoder_bias + self.constant + self.nodes

    @property
    def error_share(self) -> float:
        """Sum of |error| relative to the sum of |features| and |error|."""
        error = float(self.error.abs().sum())
        whole = error + float(self.features.abs().sum())
        return error / whole if whole else 0.0


@torch.no_grad()
def split_paths(clean: Forward, found: FrozenMap, dictionary: Dictionary) -> PathSplit:
    """Split p over the features of the dictionary at the map's layer, at all positions.

    Raises:
        InputError: the dictionary is of another layer, or normalises each token.
    """
    dictionary = in_the_stream(dictionary)
    if dictionary.layer != found.layer:
        raise InputError(
            f"The dictionary is of layer {dictionary.layer}, the paths begin at {found.layer}."
        )
    x = clean.resid[found.layer]
    acts = activations(dictionary, x).to(x)
    features = acts * (found.J @ dictionary.W_dec.to(x).T)
    bias = (dictionary.b_dec.to(x) * found.J).sum(-1)
    # What is left of x . J, so that the sum is exact also where the dictionary runs in float32.
    error = (x * found.J).sum(-1) - features.sum(-1) - bias
    return PathSplit(features, error, float(bias.sum()), found.constant, float(found.nodes.sum()))
