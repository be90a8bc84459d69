"""What a feature does to the prediction when it is set to a value: logits with it clamped.

At the last position of some prompts the stream x of the feature's layer becomes
x + (value - f(x)) d_s, and the rest of the model is run again (`model/exact.py`).  Everything
before that position is untouched, so the keys and values of earlier tokens are computed once and
each clamped feature costs one token per prompt.  This is an intervention: it says what the feature
*can* do to the prediction at a typical strength, not what it does on a text.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from saekit.model.exact import Edits, ExactModel
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import Dictionary

RANDOM = 100  # features of the same layer to compare with
PROMPTS, PROMPT_TOKENS = 8, 33  # passages of held-out text, BOS included
QUANTILE = 0.9
_BATCH = 512  # clamped features run at once


class Clamping:
    """Prompts with everything that does not change when their last position is changed.

    Args:
        model: the model.
        prompts: token ids, BOS in front if the model reads one.
    """

    def __init__(self, model: LanguageModel, prompts: Int[Tensor, "prompt pos"]):
        self.exact = ExactModel(model)
        self._last = prompts.shape[1] - 1
        self._clean = [self.exact.run(ids.to(model.device)) for ids in prompts]

    @torch.no_grad()
    def changes(
        self, dictionary: Dictionary, features: Sequence[int], values: Float[np.ndarray, " feature"]
    ) -> Float[Tensor, "feature d_model"]:
        """Change of the final LayerNorm's output at the last position when each feature is set to
        its value, mean over the prompts."""
        exact, layer = self.exact, dictionary.layer
        wanted = torch.as_tensor(values, dtype=torch.float32, device=exact.W_E.device)
        chosen = torch.as_tensor(list(features), device=exact.W_E.device)
        found = []
        for some, value in zip(chosen.split(_BATCH), wanted.split(_BATCH), strict=True):
            moved = torch.zeros(len(some), exact.d_model).to(exact.W_E)
            for clean in self._clean:
                x = dictionary.clamped(clean.resid[layer, -1], some, value)[:, None]
                last = exact.rerun(clean, Edits(), (self._last, self._last), layer, resid=x)[:, 0]
                moved += self._normed(last) - self._normed(clean.resid[-1, -1])
            found.append(moved / len(self._clean))
        return torch.cat(found)

    def rises(
        self,
        dictionary: Dictionary,
        features: Sequence[int],
        values: Float[np.ndarray, " feature"],
        tokens: Sequence[Sequence[int]],
    ) -> Float[Tensor, "feature words"]:
        """Rise of the mean logit of each set of tokens, less the mean rise over the vocabulary."""
        W_U = self.exact.W_U
        directions = [W_U[:, list(some)].mean(1) - W_U.mean(1) for some in tokens]
        return self.changes(dictionary, features, values) @ torch.stack(directions, 1)

    def _normed(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return self.exact.norm(x, self.exact.gamma_f, self.exact.beta_f)[0]


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
    tokens, drawn = list(named.values()), random.tolist()
    others = clamping.rises(dictionary, drawn, values[drawn], tokens)
    rises = clamping.rises(dictionary, list(named), values[list(named)], tokens).diagonal()
    below = (others < rises).float().mean(0)
    return {
        feature: (float(rise), float(share))
        for feature, rise, share in zip(named, rises.tolist(), below.tolist(), strict=True)
    }


def prompts_of(rows: Integer[np.ndarray, "row context"]) -> Int[Tensor, "prompt pos"]:
    """The beginnings of evenly spread rows of text."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, PROMPTS).astype(np.int64))
    return torch.from_numpy(rows[chosen, :PROMPT_TOKENS].astype(np.int64))
