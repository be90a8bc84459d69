"""A GPT-2 in which one MLP writes a feature and a later one erases it.

Token embeddings are random unit vectors of mean 0 in the first coordinates, so LayerNorm only
scales them.  A set of tokens ("the class") has nothing in common there.  In block `WRITES` the MLP
has one hidden unit per token of the class, far below zero for all other tokens, and every such unit
writes the same vector of the last coordinates: 3 v.  In block `ERASES` one hidden unit reads v
and writes -3 v.  All other weights are 0: the class can be read at layers WRITES + 1 .. ERASES,
and nowhere else.
"""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

N_LAYERS, WRITES, ERASES = 6, 1, 4
SPAN = (WRITES + 1, ERASES)
D_MODEL, D_TOKENS = 64, 48
STRENGTH = 3.0


def _centred(rng, n, d):
    rows = rng.standard_normal((n, d))
    rows -= rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted_gpt2(vocabulary, members, seed=0):
    """The model, for a vocabulary size and the token ids of the class."""
    rng = np.random.default_rng(seed)
    rows = _centred(rng, vocabulary, D_TOKENS)
    for token in members:  # no other token is near one of the class
        while (near := np.flatnonzero(rows @ rows[token] > 0.65)).size > 1:
            others = near[near != token]
            rows[others] = _centred(rng, len(others), D_TOKENS)
    v = torch.zeros(D_MODEL)
    v[D_TOKENS:] = torch.tensor(_centred(rng, 1, D_MODEL - D_TOKENS)[0])
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_positions=64, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            layer_norm_epsilon=1e-10,
        )
    ).eval()  # fmt: skip
    root = D_MODEL**0.5  # LayerNorm makes the norm of a centred row sqrt(d_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for block in model.transformer.h:
            block.ln_1.weight.fill_(1)
            block.ln_2.weight.fill_(1)
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wte.weight[:, :D_TOKENS] = torch.tensor(rows).float()
        write, erase = (model.transformer.h[block].mlp for block in (WRITES, ERASES))
        for unit, token in enumerate(members):  # 60 (cos - 0.8): 12 for its token, at most -9
            write.c_fc.weight[:D_TOKENS, unit] = torch.tensor(rows[token]).float() * 60 / root
            write.c_fc.bias[unit] = -48
            write.c_proj.weight[unit] = STRENGTH * v / 12
        share = STRENGTH / (1 + STRENGTH**2) ** 0.5  # of v in the norm of the stream
        erase.c_fc.weight[:, 0] = v * 40 / root
        erase.c_fc.bias[0] = -20
        erase.c_proj.weight[0] = -STRENGTH * v / (40 * share - 20)
    return model
