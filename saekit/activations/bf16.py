"""The model's forward pass in bfloat16 on the CPU, for training only.

The stream, the sums of LayerNorm and of attention are float32; the four matrix products of a block
run in bfloat16 on weights that were converted and packed once, with GELU inside the product, and
what stands between them in C++ (forward.cpp).  Automatic mixed precision converts weights in every
pass and runs everything by itself, at equal noise (0.3% of the stream); 16-wide heads alone cost
PyTorch's attention more than half of what the products do.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.activations.products import linear
from saekit.activations.residuals import embed
from saekit.model.decoder import TANH_GELUS, Decoder, DecoderBlock
from saekit.model.loading import LanguageModel
from saekit.native.library import Functions, library

SOURCE = "forward"
# private to PyTorch: a version without them runs the model in its own bfloat16
PRIVATE = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
HEAD_WIDTHS = (8, 16, 32, 64, 128)  # that forward.cpp is compiled for


class _Norm:
    """The addition to the stream, and the LayerNorm of the sum."""

    def __init__(self, gamma: Tensor, beta: Tensor, eps: float, functions: Functions):
        self.gamma, self.beta = gamma.float(), beta.float()
        self.eps, self._c = eps, functions

    def __call__(
        self,
        stream: Float[Tensor, "row d_model"],
        delta: Tensor | None,
        kept: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Adds `delta` in place, copies rows to their places in `kept`; the LayerNorm of it."""
        normed = torch.empty(stream.shape, dtype=torch.bfloat16)
        self.add(stream, delta, kept, places, normed)
        return normed

    def add(
        self,
        stream: Float[Tensor, "row d_model"],
        delta: Tensor | None,
        kept: Tensor | None,
        places: Tensor | None,
        normed: Tensor | None = None,
    ) -> None:
        """The same, with the LayerNorm only where `normed` is to be filled."""
        self._c.add_norm(
            stream, delta, places, kept, self.gamma, self.beta, self.eps,
            len(stream), stream.shape[1], normed,
        )  # fmt: skip


class _Block:
    def __init__(self, model: Decoder, w: DecoderBlock, rows: int, functions: Functions):
        self.heads, self.scaling = model.n_heads, w.score_scale
        self.norm1 = _Norm(w.gamma1, w.beta1, model.eps, functions)
        self.norm2 = _Norm(w.gamma2, w.beta2, model.eps, functions)
        self.qkv = linear(w.W_QKV, w.b_QKV, rows)
        self.mixed = linear(w.W_O.flatten(0, 1), w.b_O, rows)
        self.inner = linear(w.W_in, w.b_in, rows, gelu=True)
        self.outer = linear(w.W_out, w.b_out, rows)
        self._c = functions

    def __call__(self, stream: Tensor, normed: Tensor, pos: int) -> Tensor:
        """What the MLP adds; the attention's output is added to the stream in place."""
        moved = attend(self._c, self.qkv(normed), pos, self.heads, self.scaling)
        delta = self.mixed(moved)
        return self.outer(self.inner(self.norm2(stream, delta)))


def attend(
    functions: Functions,
    qkv: Float[Tensor, "row three_d_model"],
    pos: int,
    heads: int,
    scale: float,
) -> Float[Tensor, "row d_model"]:
    """Causal attention of sequences of `pos` rows, in bfloat16; sums are float32."""
    rows, d_model = len(qkv), qkv.shape[1] // 3
    out = torch.empty(rows, d_model, dtype=torch.bfloat16)
    functions.attend(qkv, rows // pos, pos, heads, d_model // heads, scale, out)
    return out


def can_run(model: LanguageModel) -> bool:
    """Whether this machine and this torch have what it takes, and the model GPT-2's GELU and
    dense attention."""
    return (
        model.device.type == "cpu"
        and model.hf.config.model_type == "gpt2"
        and model.gate_bias is None
        and model.d_head in HEAD_WIDTHS
        and model.decoder.activation in TANH_GELUS
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in PRIVATE)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and library(SOURCE) is not None
    )


class NarrowForward:
    """`residuals` in bfloat16; a snapshot of the model's weights.  See the module's docstring."""

    def __init__(self, model: LanguageModel, rows: int):
        """
        Args:
            model: the model; must be one that `can_run`.
            rows: tokens per pass, for which weights are packed (others work, a little slower).
        """
        functions = library(SOURCE)
        assert functions is not None, "can_run was not asked"
        self.model = model
        decoder = model.decoder
        self.blocks = [_Block(decoder, block, rows, functions) for block in decoder.blocks]
        self._out = torch.empty(0, 0, model.d_model, dtype=torch.bfloat16)

    @torch.no_grad()
    def __call__(
        self, ids: Int[Tensor, "batch pos"], layers: list[int], keep: Int[Tensor, " token"]
    ) -> Float[Tensor, "layer token d_model"]:
        """The residual stream, rounded to bfloat16, at the given layers (ascending).

        The next call overwrites it.

        Args:
            ids: token ids.
            layers: 0..n_layers.
            keep: which of the batch * pos tokens are wanted, ascending.
        """
        stream = embed(self.model, ids).flatten(0, 1).float()
        out = self._memory(len(layers), len(keep))
        places = torch.full((len(stream),), -1, dtype=torch.int32)
        places[keep] = torch.arange(len(keep), dtype=torch.int32)
        slots = dict(zip(layers, out, strict=True))
        delta = None
        for layer, block in enumerate(self.blocks[: layers[-1]]):
            normed = block.norm1(stream, delta, slots.get(layer), places)
            delta = block(stream, normed, ids.shape[1])
        self.blocks[0].norm1.add(stream, delta, slots[layers[-1]], places)
        return out

    def _memory(self, layers: int, tokens: int) -> Float[Tensor, "layer token d_model"]:
        if self._out.shape[0] != layers or self._out.shape[1] < tokens:
            self._out = torch.empty(layers, tokens, self.model.d_model, dtype=torch.bfloat16)
        return self._out[:, :tokens]
