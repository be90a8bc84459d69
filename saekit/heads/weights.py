"""What a head reads from a lone token, from weights alone (MAPS, Elhelo and Geva 2024).

    e_t = W_E[t]                           no position, no LayerNorm
    s_t = e_t                              for the heads of layer 0
    s_t = MLP_0( LN2_0( e_t ) )            for all others: the MLP's output, e_t is not added back
    z_t = s_t W_V[l, h]                    no LN_1 in front of it, no b_V
    L_t = z_t W_O[l, h] W_U                no LN_f in front of it, no b_O

Weights are as stored: folding ln_1 or centring W_U into them would be another model.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.model.exact import ExactModel


@torch.no_grad()
def first_mlp(
    exact: ExactModel, embedding: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token d_model"]:
    """MLP_0( LN2_0( e ) ): the first MLP's output, in the precision of `embedding`."""
    w = exact.blocks[0].to(embedding.dtype)
    return exact.mlp(w, exact.norm(embedding, w.gamma2, w.beta2)[0])[-1]


@torch.no_grad()
def head_input(
    exact: ExactModel, ids: Int[Tensor, " token"], layer: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "token d_model"]:
    """s_t: what the heads of a layer are given for each token."""
    embedding = exact.W_E[ids].to(dtype)
    return embedding if layer == 0 else first_mlp(exact, embedding)


@torch.no_grad()
def head_values(
    exact: ExactModel, ids: Int[Tensor, " token"]
) -> Float[Tensor, "layer head token d_head"]:
    """z_t of every head in one pass; `z_t W_O W_U` are its logits."""
    first, later = head_input(exact, ids, 0), head_input(exact, ids, 1)
    return torch.stack(
        [(later if layer else first) @ block.W_V for layer, block in enumerate(exact.blocks)]
    )


@torch.no_grad()
def head_writes(
    exact: ExactModel, ids: Int[Tensor, " token"], layer: int, head: int
) -> Float[Tensor, "token d_model"]:
    """z_t W_O of one head in float64, for decisions that float32 cannot make."""
    block = exact.blocks[layer]
    read = head_input(exact, ids, layer, torch.float64)
    return read @ block.W_V[head].double() @ block.W_O[head].double()
