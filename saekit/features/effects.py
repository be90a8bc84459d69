"""What a feature does to the prediction when it is set to a value: logits with it clamped.

At the last position of some prompts the stream x of the feature's layer becomes
x + (value - f(x)) d_s, and the rest of the model is run again.  Everything before that position is
untouched, so the keys and values of earlier tokens are computed once and each clamped feature costs
one token per prompt.  This is an intervention: it says what the feature *can* do to the prediction
at a typical strength, not what it does on a text.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from saekit.activations import residuals
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import Dictionary

RANDOM = 100  # features of the same layer to compare with
PROMPTS, PROMPT_TOKENS = 8, 33  # passages of held-out text, BOS included
QUANTILE = 0.9
_BATCH = 512  # clamped tokens run at once


class Clamping:
    """Prompts with everything that does not change when their last position is changed.

    Args:
        model: the model.
        prompts: token ids, BOS in front if the model reads one.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, prompts: Int[Tensor, "prompt pos"]):
        self.model = model
        self.streams = residuals(model, prompts)[:, :, -1]
        streams = residuals(model, prompts)
        self._keys, self._values = [], []
        for block, stream in zip(model.hf.transformer.h, streams[:-1], strict=True):
            _, k, v = self._qkv(block, stream)
            self._keys.append(k[:, :, :-1])
            self._values.append(v[:, :, :-1])
        self._base = self._final(self.streams[-1])

    def _qkv(self, block: torch.nn.Module, stream: Tensor) -> list[Tensor]:
        heads = self.model.n_heads
        parts = block.attn.c_attn(block.ln_1(stream)).chunk(3, -1)  # type: ignore[operator]
        return [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts]

    def _final(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return self.model.hf.transformer.ln_f(stream)

    @torch.no_grad()
    def run(
        self, x: Float[Tensor, "feature prompt d_model"], layer: int
    ) -> Float[Tensor, "feature prompt d_model"]:
        """The final LayerNorm's output at the last position, from other streams of a layer."""
        n_features, n_prompts, d_model = x.shape
        for m, block in enumerate(self.model.hf.transformer.h[layer:], layer):
            q, k, v = (
                part.unflatten(0, (n_features, n_prompts)).squeeze(-2)
                for part in self._qkv(block, x.reshape(-1, 1, d_model))
            )
            scale = float(block.attn.scaling)  # type: ignore
            before = torch.einsum("fphd,phjd->fphj", q, self._keys[m]) * scale
            own = (q * k).sum(-1, keepdim=True) * scale
            pattern = torch.cat([before, own], -1).softmax(-1)
            mixed = torch.einsum("fphj,phjd->fphd", pattern[..., :-1], self._values[m])
            mixed = mixed + pattern[..., -1:] * v
            x = x + block.attn.c_proj(mixed.flatten(-2))  # type: ignore[operator]
            x = x + block.mlp(block.ln_2(x))  # type: ignore[operator]
        return self._final(x)

    @torch.no_grad()
    def changes(
        self, dictionary: Dictionary, features: Sequence[int], values: Float[np.ndarray, " feature"]
    ) -> Float[Tensor, "feature prompt d_model"]:
        """Change of the final LayerNorm's output when each feature is set to its value."""
        found = []
        x = self.streams[dictionary.layer]
        own = dictionary.encode(x)
        per_batch = max(1, _BATCH // len(x))
        for start in range(0, len(features), per_batch):
            part = list(features[start : start + per_batch])
            value = torch.as_tensor(values[start : start + per_batch], dtype=x.dtype)
            step = value.to(x.device)[:, None] - own[:, part].T
            clamped = x + step[..., None] * dictionary.W_dec[part][:, None].to(x)
            found.append(self.run(clamped, dictionary.layer) - self._base)
        return torch.cat(found)


def quantiles(
    histogram: Integer[np.ndarray, "feature bin"],
    log2_range: Integer[np.ndarray, " feature"],
    q: float,
) -> Float[np.ndarray, " feature"]:
    """The q-quantile of each feature's positive activations, read from the index's histograms.

    Linear inside a bin; 0 for a feature that never is active.
    """
    counts = histogram.astype(np.float64)
    total = counts.sum(-1)
    above = np.cumsum(counts, -1)
    bin_ = (above < (q * total)[:, None]).sum(-1).clip(max=counts.shape[1] - 1)
    at = np.arange(len(counts)), bin_
    inside = (q * total - (above[at] - counts[at])) / np.maximum(counts[at], 1)
    width = np.ldexp(1.0, log2_range.astype(np.int32)) / counts.shape[1]
    return np.where(total > 0, (bin_ + inside) * width, 0.0)


@torch.no_grad()
def logit_rises(
    clamping: Clamping,
    dictionary: Dictionary,
    named: dict[int, list[int]],
    values: Float[np.ndarray, " d_sae"],
    alive: Int[np.ndarray, " alive"],
    seed: int = 0,
) -> dict[int, tuple[float, float]]:
    """How much clamped features raise the logits of the tokens they are named after.

    The rise is the mean over prompts and named tokens of the change of the logit, less the mean
    change over the vocabulary.

    Args:
        clamping: the prompts.
        dictionary: of one layer.
        named: feature -> token ids.
        values: what each feature is set to.
        alive: features from which `RANDOM` are drawn to compare with.
        seed: of that draw.

    Returns:
        feature -> (rise, share of the random features, each set to its own value, that raise the
        same tokens less).
    """
    if not named or not len(alive):
        return {}
    rng = np.random.default_rng((seed, dictionary.layer))
    random = rng.choice(alive, min(RANDOM, len(alive)), replace=False)
    W_U = clamping.model.hf.lm_head.weight
    mean = W_U.mean(0)

    def mean_change(features: Sequence[int]) -> Float[Tensor, "feature d_model"]:
        return clamping.changes(dictionary, features, values[list(features)]).mean(1)

    others = mean_change(random.tolist())
    directions = torch.stack([W_U[tokens].mean(0) - mean for tokens in named.values()])
    own = mean_change(list(named))
    rises = (own * directions).sum(-1)
    below = (others @ directions.T < rises).float().mean(0)
    return {
        feature: (float(rise), float(share))
        for feature, rise, share in zip(named, rises.tolist(), below.tolist(), strict=True)
    }


def prompts_of(rows: Integer[np.ndarray, "row context"]) -> Int[Tensor, "prompt pos"]:
    """The beginnings of evenly spread rows of text."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, PROMPTS).astype(np.int64))
    return torch.from_numpy(rows[chosen, :PROMPT_TOKENS].astype(np.int64))
