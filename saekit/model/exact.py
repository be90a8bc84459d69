"""An exact forward pass of one prompt, with every intermediate value and with edits.

Own code on the checkpoint's unprocessed weights, in float32 or float64, in row-vector convention:

    mid_m   = x_m + sum_h o_mh + b_O,m          o_mh = A_mh ( norm_1(x_m) W_V + b_V ) W_O
    x_{m+1} = mid_m + ( rho * u ) W_out + b_out           u = norm_2(mid_m) W_in + b_in
    logits  = norm_f(x_n) W_U

rho is act(u) / u, in a gated MLP act(g) with g = norm_2(mid_m) W_gate + b_gate.  A_mh is the
softmax pattern, or that with the closed edges of gated attention at 0 (gating.py; its
rows then sum to less than 1, so b_V is a part of the value and never of b_O).

`ExactModel.run` stores every value of these equations.  `ExactModel.rerun` repeats a window of
positions from a given layer with edits, many edits as one batch; positions before the window keep
their clean keys and values, so removing edges into one query costs one token per edit.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.model.decoder import DecoderBlock
from saekit.model.gating import gated
from saekit.model.loading import LanguageModel


@dataclass(frozen=True)
class Forward:
    """Every value of one prompt.  The position axis is the tensor index (BOS included).

    Attributes:
        resid: residual stream at every layer; `resid[n_layers]` is the final one.
        mid: residual stream between attention and MLP of every block.
        pattern, key, value: of every query head; `pattern` is gated, keys are turned to their
            positions, `value` includes b_V.
        scale1, scale2, scale_f: what the norms divided by.
        pre: MLP hidden units u, before the factor rho.
        rho: what they are multiplied with.
        gate_in: what the activation function reads: g, or u where the MLP has no gate.
        mlp_out: what the MLP wrote, b_out included.
    """

    ids: Int[Tensor, " pos"]
    resid: Float[Tensor, "layer_plus_one pos d_model"]
    mid: Float[Tensor, "layer pos d_model"]
    pattern: Float[Tensor, "layer head query pos"]
    key: Float[Tensor, "layer head pos d_head"]
    value: Float[Tensor, "layer head pos d_head"]
    scale1: Float[Tensor, "layer pos"]
    scale2: Float[Tensor, "layer pos"]
    pre: Float[Tensor, "layer pos d_mlp"]
    rho: Float[Tensor, "layer pos d_mlp"]
    gate_in: Float[Tensor, "layer pos d_mlp"]
    mlp_out: Float[Tensor, "layer pos d_model"]
    scale_f: Float[Tensor, " pos"]
    logits: Float[Tensor, "pos d_vocab"]


@dataclass(frozen=True)
class Moved:
    """What the edges from `keys` move in some heads; `Edits.keep` takes away what they moved.

    Attributes:
        heads: 1 where a head's edges are replaced, else 0.
        value: what is moved from each key, before W_O.
        weight: of each edge, instead of the live attention weight.
    """

    heads: Float[Tensor, "layer batch head"]
    keys: Int[Tensor, " key"]
    value: Float[Tensor, "layer head key d_head"]
    weight: Float[Tensor, "layer head query key"] | None = None


@dataclass
class Edits:
    """What a batch of reruns changes.  The query axis is the rerun's window.

    Attributes:
        keep: factor on every attention weight after softmax and gate (0 removes an edge); None
            changes nothing.
        renormalise: whether the weights that are left grow until the row's sum is what it was.
        moved: what edges carry instead.
        head_out: (layer, head) -> what the head writes instead (zeros remove the head).
    """

    keep: Float[Tensor, "layer batch head query pos"] | None = None
    renormalise: bool = False
    moved: Moved | None = None
    head_out: dict[tuple[int, int], Float[Tensor, "batch query d_model"]] = field(
        default_factory=dict
    )


class ExactModel:
    """The weights of a loaded model in one precision, and its forward pass in plain equations."""

    def __init__(self, model: LanguageModel, dtype: torch.dtype = torch.float32) -> None:
        decoder = model.decoder.to(dtype)
        self.decoder = decoder
        self.n_layers, self.n_heads = decoder.n_layers, decoder.n_heads
        self.d_model, self.d_head = decoder.d_model, decoder.d_head
        self.activation, self.eps = decoder.activation, decoder.eps
        self.W_E, self.W_U = decoder.W_E, decoder.W_U
        self.gamma_f, self.beta_f = decoder.gamma_f, decoder.beta_f
        self.gate_bias, self.blocks = decoder.gate_bias, decoder.blocks

    def gate(self, z: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        """rho = act(z) / z, which is 1/2 at z = 0 (relu: 0): act(z) = rho z exactly."""
        if self.activation == "relu":
            return (z > 0).to(z.dtype)
        if self.activation == "gelu":
            return 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        if self.activation in ("silu", "quick_gelu"):
            return torch.sigmoid(z if self.activation == "silu" else 1.702 * z)
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    def norm(
        self, x: Float[Tensor, "*batch d_model"], gamma: Tensor, beta: Tensor
    ) -> tuple[Float[Tensor, "*batch d_model"], Float[Tensor, "*batch"]]:
        """The norm and what it divided by."""
        centred = self.decoder.centred(x)
        scale = (centred.square().mean(-1) + self.eps).sqrt()
        return centred / scale[..., None] * gamma + beta, scale

    def unembed(
        self, resid: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch d_vocab"], Float[Tensor, "*batch"]]:
        """Logits of a final residual stream, and the final norm's scale."""
        normed, scale = self.norm(resid, self.gamma_f, self.beta_f)
        return normed @ self.W_U, scale

    def mlp(
        self, w: DecoderBlock, normed: Float[Tensor, "*batch d_model"]
    ) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, "*batch d_model"]]:
        """(u, rho, what the activation function reads, what the block's MLP writes)."""
        pre = normed @ w.W_in + w.b_in
        if w.W_gate is None or w.b_gate is None:
            gate_in, rho = pre, self.gate(pre)
        else:
            gate_in = normed @ w.W_gate + w.b_gate
            rho = self.gate(gate_in) * gate_in
        return pre, rho, gate_in, (rho * pre) @ w.W_out + w.b_out

    def _heads(self, flat: Tensor) -> Tensor:
        """[batch, window, n * d_head] -> [batch, n, window, d_head]."""
        return flat.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def _attention(
        self,
        m: int,
        x: Float[Tensor, "batch window d_model"],
        first: int,
        past: tuple[Tensor, Tensor] | None,
        edits: Edits,
    ) -> dict[str, Tensor]:
        """Attention m on the positions from `first` on; `past` = clean keys and values before.

        `written` is what the heads write, b_O left out.
        """
        w = self.blocks[m]
        normed, scale1 = self.norm(x, w.gamma1, w.beta1)
        model, window = self.decoder, torch.arange(first, first + x.shape[1], device=x.device)
        query, key, value = map(self._heads, (normed @ w.W_QKV + w.b_QKV).split(model.sides, -1))
        if model.rotary is not None:
            query, key = model.rotary.turned(query, window), model.rotary.turned(key, window)
        if model.shared > 1:
            key, value = (t.repeat_interleave(model.shared, 1) for t in (key, value))
        if past is not None:
            batch = len(x)
            key = torch.cat([past[0].expand(batch, -1, -1, -1), key], 2)
            value = torch.cat([past[1].expand(batch, -1, -1, -1), value], 2)
        scores = query @ key.transpose(-1, -2) * w.score_scale
        positions = torch.arange(key.shape[2], device=x.device)
        future = positions > window[:, None]
        live = scores.masked_fill(future, -math.inf).softmax(-1)
        if self.gate_bias is not None:
            live = gated(scores, live, self.gate_bias[m])
        pattern = live if edits.keep is None else live * edits.keep[m]
        if edits.renormalise:
            left = pattern.sum(-1, keepdim=True)
            pattern = pattern * torch.where(left > 0, live.sum(-1, keepdim=True) / left, 0.0)
        z = pattern @ value  # [batch, head, window, d_head]
        if edits.moved is not None:
            z = z + self._moved(m, live, edits.moved)
        replaced = {head: out for (layer, head), out in edits.head_out.items() if layer == m}
        if replaced:
            z = z.index_fill(1, torch.tensor(list(replaced), device=x.device), 0.0)
        written = z.transpose(1, 2).flatten(2) @ w.W_O.flatten(0, 1)
        for out in replaced.values():
            written = written + out
        return {
            "written": written, "pattern": pattern, "key": key, "value": value, "scale1": scale1,
        }  # fmt: skip

    def _moved(self, m: int, live: Tensor, moved: Moved) -> Tensor:
        weight = live[..., moved.keys] if moved.weight is None else moved.weight[m]
        weight = weight * moved.heads[m][:, :, None, None]
        return torch.einsum("bhqk,hkd->bhqd", weight, moved.value[m])

    def _block(
        self,
        m: int,
        x: Float[Tensor, "batch window d_model"],
        first: int,
        past: tuple[Tensor, Tensor] | None,
        edits: Edits,
    ) -> dict[str, Tensor]:
        """Block m, as `_attention`."""
        w = self.blocks[m]
        attention = self._attention(m, x, first, past, edits)
        mid = x + attention.pop("written") + w.b_O
        normed2, scale2 = self.norm(mid, w.gamma2, w.beta2)
        pre, rho, gate_in, mlp_out = self.mlp(w, normed2)
        return {
            **attention, "resid": mid + mlp_out, "mid": mid, "scale2": scale2, "pre": pre,
            "rho": rho, "gate_in": gate_in, "mlp_out": mlp_out,
        }  # fmt: skip

    @torch.no_grad()
    def run(self, ids: Int[Tensor, " pos"]) -> Forward:
        """The clean forward pass of one prompt, everything stored."""
        x = self.decoder.embedded(ids)[None]
        resid, stored = [x], []
        for m in range(self.n_layers):
            values = self._block(m, resid[-1], 0, None, Edits())
            resid.append(values.pop("resid"))
            stored.append(values)
        logits, scale_f = self.unembed(resid[-1])
        stacked = {name: torch.cat([values[name] for values in stored]) for name in stored[0]}
        return Forward(ids, torch.cat(resid), scale_f=scale_f[0], logits=logits[0], **stacked)

    @torch.no_grad()
    def rerun(
        self,
        clean: Forward,
        edits: Edits,
        window: tuple[int, int],
        start: int = 0,
        until: int | None = None,
        resid: Float[Tensor, "batch window d_model"] | None = None,
        batch: int = 1,
    ) -> Float[Tensor, "batch window d_model"]:
        """The residual stream at layer `until` on the positions window[0] .. window[1] inclusive.

        Args:
            start: first layer to compute; the stream below it is the clean one, or `resid`.
            resid: the stream at `start`, to change it (one row per batch element).
            batch: number of edits, where `resid` is not given.
        """
        first, last = window
        x = resid
        if x is None:
            x = clean.resid[start, first : last + 1].expand(batch, -1, -1)
        for m in range(start, self.n_layers if until is None else until):
            past = (clean.key[m][None, :, :first], clean.value[m][None, :, :first])
            x = self._block(m, x, first, past, edits)["resid"]
        return x

    @torch.no_grad()
    def written(
        self, clean: Forward, edits: Edits, window: tuple[int, int], m: int, batch: int = 1
    ) -> Float[Tensor, "batch window d_model"]:
        """What block m's heads together write under edits, their input being the clean stream."""
        first, last = window
        past = (clean.key[m][None, :, :first], clean.value[m][None, :, :first])
        x = clean.resid[m, first : last + 1].expand(batch, -1, -1)
        return self._attention(m, x, first, past, edits)["written"]

    def head_outputs(self, clean: Forward, position: int) -> Float[Tensor, "layer head d_model"]:
        """What every head writes at a position: o_mh, without b_O."""
        z = torch.einsum("lhk,lhkd->lhd", clean.pattern[:, :, position], clean.value)
        return torch.einsum("lhd,lhdm->lhm", z, torch.stack([w.W_O for w in self.blocks]))
