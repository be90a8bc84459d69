"""Attribution of a target to components and to attention edges; every identity here is exact.

Component completeness: x_L(q) is the sum of all writes to position q, so

    p = (W_E + W_pos)(q) . e + sum_mh o_mh(q) . e + sum_m b_O,m . e + sum_m mlp_m(q) . e + c

Last arrival: every path from another position to the target has exactly one *last* attention edge
that enters q.  With G_m the cotangent of p at mid_m(q) in the network restricted to position q
(residual stream, MLPs and self-edges at q; patterns, LayerNorm scales and the MLPs' gate ratios
rho = act(z) / z frozen),

    H(m, h, k) = A_mh[q, k] (LN1_m(x_m(k)) W_V + b_V) W_O . G_m        for k != q

and the sum of all H plus what stays at position q equals p.  Unlike head loadings, contributions
of heads in different layers can therefore be added: no path is counted twice.

An attribution says what was carried in this forward pass; it is not a causal effect (removal.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.coordinates import Head, head_name
from saekit.model.exact import ExactModel, Forward
from saekit.routes.target import Target, activations, in_the_stream
from saekit.sae.dictionary import Dictionary

# Where large terms cancel, the error is compared with 1% of their size instead of with p itself.
CANCELLATION = 0.01


@dataclass(frozen=True)
class Arrivals:
    """The last-arrival decomposition of one target.

    Attributes:
        edges: H(m, h, k) for all blocks below the target's layer; the columns k >= q are 0.
        rest: what stayed at position q: embedding, biases, MLP and self-edge constants, c.
        mid_cotangents: G_m of every block below the target's layer.
    """

    target: Target
    edges: Float[Tensor, "layer head pos"]
    rest: float
    mid_cotangents: Float[Tensor, "layer d_model"]

    @property
    def total(self) -> float:
        """Equals the pre-activation up to rounding."""
        return float(self.edges.sum()) + self.rest


def relative_error(found: float, expected: float, size: float) -> float:
    """|found - expected| relative to |expected|, or to 1% of the terms' size where they cancel."""
    return abs(found - expected) / max(abs(expected), CANCELLATION * size, 1e-30)


def components(exact: ExactModel, clean: Forward, target: Target) -> list[tuple[str, float]]:
    """The component table; its values sum to the pre-activation.

    Names: `embedding`, `L0-H0` ..., `MLP 0` ..., `attention biases`, `constant`.
    """
    q, e = target.query, target.direction
    rows = [("embedding", float(clean.resid[0, q] @ e))]
    heads = direct_edges(exact, clean, target).sum(-1)
    for m in range(target.layer):
        rows += [(head_name(m, h), float(heads[m, h])) for h in range(exact.n_heads)]
        rows.append((f"MLP {m}", float(clean.mlp_out[m, q] @ e)))
    biases = sum((float(exact.blocks[m].b_O @ e) for m in range(target.layer)), 0.0)
    return [*rows, ("attention biases", biases), ("constant", target.constant)]


def completeness_error(rows: list[tuple[str, float]], preactivation: float) -> float:
    """How far the component table is from the pre-activation, relative (see `relative_error`)."""
    values = [value for _, value in rows]
    return relative_error(sum(values), preactivation, sum(map(abs, values)))


def through_norm(
    exact: ExactModel,
    cotangent: Float[Tensor, "*#batch d_model"],
    gamma: Float[Tensor, " d_model"],
    scale: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*#batch d_model"]:
    """A cotangent behind a norm, pulled back in front of it (scale frozen)."""
    return exact.decoder.centred(cotangent * gamma / scale[..., None])


@torch.no_grad()
def direct_edges(
    exact: ExactModel, clean: Forward, target: Target
) -> Float[Tensor, "layer head pos"]:
    """A_mh[q, k] v_mh(k) W_O . e: what each edge into q writes straight onto the target.

    The sum over k is the head's row of `components`; no path through later blocks is in it.
    """
    q, e = target.query, target.direction
    if target.layer == 0:
        return e.new_zeros(0, exact.n_heads, len(clean.ids))
    at_value = torch.stack([w.W_O @ e for w in exact.blocks[: target.layer]])
    moved = torch.einsum("lhkd,lhd->lhk", clean.value[: target.layer], at_value)
    return clean.pattern[: target.layer, :, q] * moved


def arrivals(exact: ExactModel, clean: Forward, target: Target) -> Arrivals:
    """H(m, h, k) of every edge into the target's position, and the rest (module docstring)."""
    return arrivals_of(exact, clean, [target])[0]


@torch.no_grad()
def arrivals_of(exact: ExactModel, clean: Forward, targets: Sequence[Target]) -> list[Arrivals]:
    """`arrivals` of several targets of one prompt in one sweep, at any layers and queries."""
    if not targets:
        return []
    q = torch.tensor([target.query for target in targets], device=clean.resid.device)
    later = torch.arange(clean.resid.shape[1], device=q.device) >= q[:, None]  # [target, pos]
    layers = max(target.layer for target in targets)
    g = torch.zeros(len(targets), exact.d_model).to(clean.resid)  # cotangent at x_{m+1}(q)
    rest = torch.tensor([t.constant for t in targets], dtype=torch.float64, device=g.device)
    edges = torch.zeros(len(targets), layers, exact.n_heads, clean.resid.shape[1]).to(g)
    mids = torch.zeros(len(targets), layers, exact.d_model).to(g)
    for m in reversed(range(layers)):
        for row, target in enumerate(targets):
            if target.layer == m + 1:
                g[row] = target.direction
        w = exact.blocks[m]
        hidden = clean.rho[m, q] * (g @ w.W_out.T)  # cotangent before the activation
        rest += g @ w.b_out + hidden @ (w.beta2 @ w.W_in + w.b_in)
        G = g + through_norm(exact, hidden @ w.W_in.T, w.gamma2, clean.scale2[m, q])
        mids[:, m] = G
        at_value = torch.einsum("hdm,tm->thd", w.W_O, G)  # cotangent at each head's moved value
        moved = torch.einsum("hkd,thd->thk", clean.value[m], at_value)
        pattern = clean.pattern[m][:, q].transpose(0, 1)  # [target, head, pos]
        edges[:, m] = (pattern * moved).masked_fill(later[:, None], 0)
        self_weight = clean.pattern[m][:, q, q].T  # [target, head]
        value_constant = torch.einsum("d,hde->he", w.beta1, w.W_V) + w.b_V
        rest += G @ w.b_O + (self_weight * (value_constant * at_value).sum(-1)).sum(-1)
        at_norm = torch.einsum("th,hde,the->td", self_weight, w.W_V, at_value)
        g = G + through_norm(exact, at_norm, w.gamma1, clean.scale1[m, q])
    for row, target in enumerate(targets):
        if target.layer == 0:
            g[row] = target.direction
    rest += (clean.resid[0, q] * g).sum(-1)
    return [
        Arrivals(target, edges[row, : target.layer], float(rest[row]), mids[row, : target.layer])
        for row, target in enumerate(targets)
    ]


@dataclass(frozen=True)
class EdgeSplit:
    """One edge's contribution split over what its head reads at the key; the parts sum to H.

    Attributes:
        features: contribution of every dictionary feature active at the key.
        error: of what the dictionary does not reconstruct.
        decoder_bias: of b_dec.
        constant: of the LayerNorm's beta and the value bias.
    """

    features: dict[int, float]
    error: float
    decoder_bias: float
    constant: float

    @property
    def total(self) -> float:
        return sum(self.features.values()) + self.error + self.decoder_bias + self.constant


def split_edge(
    exact: ExactModel,
    clean: Forward,
    found: Arrivals,
    dictionary: Dictionary,
    head: tuple[int, int],
    key: int,
) -> EdgeSplit:
    """Split H(m, h, key) over the features of the dictionary at the head's own input, layer m.

    Raises:
        InputError: a dictionary that normalises each token.
    """
    m, h = head
    dictionary = in_the_stream(dictionary)
    w, q = exact.blocks[m], found.target.query
    weight = clean.pattern[m, h, q, key]
    at_value = w.W_O[h] @ found.mid_cotangents[m]
    reads = weight * through_norm(exact, w.W_V[h] @ at_value, w.gamma1, clean.scale1[m, key])
    x = clean.resid[m, key]
    acts = activations(dictionary, x)
    b_dec = dictionary.b_dec.to(x)
    active = acts.nonzero().flatten()
    parts = acts[active].to(x) * (dictionary.W_dec[active].to(x) @ reads)
    # What is left, so that the sum is exact also where the dictionary runs in float32.
    error = float((x - b_dec) @ reads - parts.sum())
    return EdgeSplit(
        features=dict(zip(active.tolist(), parts.tolist(), strict=True)),
        error=error,
        decoder_bias=float(b_dec @ reads),
        constant=float(weight * ((w.beta1 @ w.W_V[h] + w.b_V[h]) @ at_value)),
    )


def error_share(splits: Mapping[Head, EdgeSplit]) -> float | None:
    """Sum over the heads of |what each reads from its dictionary's error| / of |what it carries|.

    Errors of different heads do not cancel.  1 where it is more.
    """
    whole = sum(abs(split.total) for split in splits.values())
    if whole == 0:
        return None
    return min(sum(abs(split.error) for split in splits.values()) / whole, 1.0)
