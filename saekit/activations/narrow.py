"""The model's forward pass in bfloat16 on the CPU, for training only.

The stream, LayerNorms and attention stay float32; the four matrix products of a block run in
bfloat16 on weights that were converted and packed once, with GELU inside the product.  That is
about 1.4 times as fast as automatic mixed precision, which converts weights in every pass and runs
GELU by itself, at equal noise (0.3% of the stream).
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from saekit.activations.residuals import embed
from saekit.model.loading import LanguageModel


class _Product:
    """y = x W + b, or GELU of it, for one shape of x."""

    def __init__(self, layer: Conv1D, rows: int, gelu: bool = False):
        weight = layer.weight.detach().T.contiguous().bfloat16()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = layer.bias.detach().bfloat16()
        self.after = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, *self.after)


class _Block:
    def __init__(self, block: GPT2Block, rows: int):
        self.block = block
        self.qkv = _Product(block.attn.c_attn, rows)
        self.mixed = _Product(block.attn.c_proj, rows)
        self.inner = _Product(block.mlp.c_fc, rows, gelu=True)
        self.outer = _Product(block.mlp.c_proj, rows)

    def __call__(self, hidden: Float[Tensor, "batch pos d_model"]) -> None:
        """Adds the block's output to the stream in place."""
        attention = self.block.attn
        batch, pos, d_model = hidden.shape
        flat = hidden.view(batch * pos, d_model)
        qkv = self.qkv(self.block.ln_1(flat)).float()
        q, k, v = (
            part.view(batch, pos, attention.num_heads, -1).transpose(1, 2)
            for part in qkv.split(d_model, dim=1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling)
        flat += self.mixed(mixed.transpose(1, 2).reshape(batch * pos, d_model))
        flat += self.outer(self.inner(self.block.ln_2(flat)))


def can_run(model: LanguageModel) -> bool:
    """Whether this machine and this torch have the packed products, and the model GPT-2's GELU."""
    blocks = [cast(GPT2Block, block) for block in model.hf.transformer.h]
    return (
        model.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and all(isinstance(block.mlp.act, NewGELUActivation) for block in blocks)
    )


class NarrowForward:
    """`residuals` in bfloat16; a snapshot of the model's weights.  See the module's docstring."""

    def __init__(self, model: LanguageModel, rows: int):
        """
        Args:
            model: the model; must be one that `can_run`.
            rows: tokens per pass, for which weights are packed (others work, a little slower).
        """
        self.model = model
        self.blocks = [_Block(cast(GPT2Block, b), rows) for b in model.hf.transformer.h]

    @torch.no_grad()
    def __call__(
        self, ids: Int[Tensor, "batch pos"], layers: list[int]
    ) -> Float[Tensor, "layer batch pos d_model"]:
        """The residual stream at the given layers (ascending)."""
        hidden = embed(self.model, ids)
        out = torch.empty(len(layers), *hidden.shape)
        done = 0
        for slot, layer in enumerate(layers):
            for block in self.blocks[done:layer]:
                block(hidden)
            done = layer
            out[slot] = hidden
        return out
