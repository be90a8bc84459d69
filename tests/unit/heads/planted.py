"""Checkpoints with known heads, and an independent loop over the definition of the scores.

How the planted checkpoint works: an embedding row is [u_t | w_t], u_t a zero-mean unit vector in
the first d_head coordinates, w_t one in the rest; so every row has mean 0 and the same norm, and
LayerNorm is one constant factor.  Block 0's MLP is the identity times that factor: its hidden
units are z and -z and gelu(z) - gelu(-z) = z.  A copier's W_V reads the first d_head coordinates
and W_O writes them back: the logit of v is c <u_t, u_v>, largest at v = t.  The suppressor writes
their negative.  Partners' u are each other reversed, and the relation head's W_O reverses.
"""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

D_HEAD, N_HEADS, N_LAYERS, VOCABULARY = 16, 4, 3, 120
D_MODEL = D_HEAD * N_HEADS
COPIER, SUPPRESSOR, RELATION, FIRST_LAYER = (1, 2), (2, 0), (1, 3), (0, 1)
DECOYS = 10  # with half=True the second half of the tokens look like these


def config(n_layers=N_LAYERS, n_heads=N_HEADS, d_model=D_MODEL, vocabulary=VOCABULARY):
    return GPT2Config(
        vocab_size=vocabulary, n_positions=32, n_embd=d_model, n_layer=n_layers, n_head=n_heads,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


def random_model(seed=0, activation="gelu_new", **shape):
    """A random GPT-2 whose LayerNorms and biases are far from 1 and 0."""
    torch.manual_seed(seed)
    settings = config(**shape)
    settings.activation_function = activation
    settings.initializer_range = 0.2
    model = GPT2LMHeadModel(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def _unit_rows(rng, n, d):
    rows = rng.standard_normal((n, d))
    rows -= rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted_model(half=False, seed=0):
    """The planted GPT-2; with `half`, only the first half of the tokens is copied."""
    rng = np.random.default_rng(seed)
    u, w = _unit_rows(rng, 4 * VOCABULARY, D_HEAD), _unit_rows(rng, VOCABULARY, D_MODEL - D_HEAD)
    # no token is near its own reversal or the opposite of it, so that roles do not overlap
    u = u[np.abs((u * u[:, ::-1]).sum(1)) < 0.2][:VOCABULARY]
    u[1::2] = u[0::2, ::-1]  # 2i and 2i + 1 are partners
    if half:
        first = VOCABULARY // 2
        u[first:] = 0.8 * u[np.arange(first) % DECOYS]
        w[first:] *= np.sqrt(2 - 0.64)
    model = GPT2LMHeadModel(config()).eval()
    scale = np.sqrt(D_MODEL / 2)  # what LayerNorm multiplies a row of squared norm 2 by
    eye = torch.eye(D_MODEL)
    part = torch.zeros(D_HEAD, D_MODEL)
    part[:, :D_HEAD] = torch.eye(D_HEAD)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for block in model.transformer.h:
            block.ln_1.weight.fill_(1)
            block.ln_2.weight.fill_(1)
        model.transformer.ln_f.weight.fill_(1)
        rows = np.concatenate([u, w], 1).astype(np.float32)
        model.transformer.wte.weight.copy_(torch.from_numpy(rows))
        mlp = model.transformer.h[0].mlp
        mlp.c_fc.weight[:, :D_MODEL] = eye
        mlp.c_fc.weight[:, D_MODEL : 2 * D_MODEL] = -eye
        mlp.c_proj.weight[:D_MODEL] = eye / scale
        mlp.c_proj.weight[D_MODEL : 2 * D_MODEL] = -eye / scale
        writes = {COPIER: part, FIRST_LAYER: part, SUPPRESSOR: -part}
        writes[RELATION] = part.flip(0)
        for (layer, head), W_O in writes.items():
            plant(model, layer, head, part.T, W_O)
    return model


def plant(model, layer, head, W_V, W_O):
    """Set one head's value and output weights [d_model, d_head] and [d_head, d_model]."""
    attention, d = model.transformer.h[layer].attn, model.config.n_embd
    d_head = d // model.config.n_head
    with torch.no_grad():
        at = 2 * d + head * d_head
        attention.c_attn.weight[:, at : at + d_head] = W_V
        attention.c_proj.weight[head * d_head : (head + 1) * d_head] = W_O


def _gelu(x, name):
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        from scipy.special import erf

        return 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def oracle(model, pairs, k):
    """Scores and suppression by a loop over layers, heads and pairs in float64, from the state
    dict alone: nothing of saekit is used."""
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    settings = model.config
    d, n_heads, d_head = settings.n_embd, settings.n_head, settings.n_embd // settings.n_head
    W_E, W_U = state["transformer.wte.weight"], state["lm_head.weight"].T
    scores, suppression = np.zeros((2, settings.n_layer, n_heads))
    block = "transformer.h.0."
    for source, target in pairs:
        embedding = W_E[source]
        centred = embedding - embedding.mean()
        normed = centred / np.sqrt((centred**2).mean() + settings.layer_norm_epsilon)
        normed = normed * state[block + "ln_2.weight"] + state[block + "ln_2.bias"]
        hidden = normed @ state[block + "mlp.c_fc.weight"] + state[block + "mlp.c_fc.bias"]
        hidden = _gelu(hidden, settings.activation_function)
        first = hidden @ state[block + "mlp.c_proj.weight"] + state[block + "mlp.c_proj.bias"]
        for layer in range(settings.n_layer):
            read = embedding if layer == 0 else first
            name = f"transformer.h.{layer}.attn."
            for head in range(n_heads):
                columns = slice(2 * d + head * d_head, 2 * d + (head + 1) * d_head)
                z = read @ state[name + "c_attn.weight"][:, columns]
                written = z @ state[name + "c_proj.weight"][head * d_head : (head + 1) * d_head]
                logits = written @ W_U
                for grid, signed in ((scores, logits), (suppression, -logits)):
                    larger = (signed > signed[target]).sum()
                    equal = (signed == signed[target]).sum()
                    grid[layer, head] += np.clip((k - larger) / equal, 0, 1) / len(pairs)
    return scores, suppression
