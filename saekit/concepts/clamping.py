"""What clamping the features of an output concept does to its words, beside random features.

A feature is set to the 90th percentile of its positive activations at the last position of a
passage, x + (p90 - f) d, the rest of the model runs on, and the rise of the words' logit (mean over
the words, less the mean over the vocabulary, which the softmax ignores) is averaged over passages.
The same is done with 100 random features of the layer that are alive and not of the concept: the
null that says whether "writes this word" is more than any push does.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array
from torch import Tensor

from saekit.activations import residuals, run_blocks, sparse, unembed
from saekit.concepts.catalogue import ClampTest
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import Dictionary

RANDOM, MIN_ACTIVATIONS = 100, 30  # alive: active at 30 positions or more
QUANTILE = 0.9
PASSAGES, LENGTH = 16, 32
_BATCH = 64  # passages run at once


def passages(model: LanguageModel, ids: Int[np.ndarray, " position"]) -> Int[Tensor, "passage pos"]:
    """Evenly spaced passages of read text, BOS in front if the model wants it."""
    length = min(LENGTH, len(ids))
    starts = np.linspace(0, len(ids) - length, PASSAGES).astype(int)
    rows = np.stack([ids[start : start + length] for start in starts])
    if model.prepend_bos:
        rows = np.concatenate([np.full((len(rows), 1), model.bos), rows], 1)[:, : model.n_ctx]
    return torch.from_numpy(rows).long().to(model.device)


def usual_maxima(
    activations: csc_array, features: Int[np.ndarray, " feature"]
) -> Float[np.ndarray, " feature"]:
    """The 90th percentile of each feature's positive activations."""
    starts, values = sparse.starts(activations), sparse.values(activations)
    return np.array([np.quantile(values[starts[f] : starts[f + 1]], QUANTILE) for f in features])


@torch.no_grad()
def rises(
    model: LanguageModel,
    dictionary: Dictionary,
    ids: Int[Tensor, "passage pos"],
    features: Int[np.ndarray, " feature"],
    values: Float[np.ndarray, " feature"],
    tokens: list[int],
) -> Float[np.ndarray, " feature"]:
    """Mean rise of the tokens' logit when a feature is clamped at the last position.

    Args:
        model, dictionary: the model and a dictionary of it.
        ids: passages.
        features: clamped one at a time.
        values: what each is clamped to.
        tokens: the words.
    """
    layer = dictionary.layer
    x = residuals(model, ids, [layer])[0]
    active = dictionary.encode(x[:, -1]).float()

    def score(hidden: Tensor) -> Tensor:
        parts = hidden.split(_BATCH)
        last = torch.cat([run_blocks(model, part, layer, model.n_layers)[:, -1] for part in parts])
        logits = unembed(model, last).float()
        return logits[:, tokens].mean(1) - logits.mean(1)

    before, found = score(x), []
    for feature, value in zip(features.tolist(), values.tolist(), strict=True):
        clamped = x.clone()
        push = (value - active[:, feature])[:, None] * dictionary.W_dec[feature].float()
        clamped[:, -1] += push.to(clamped)
        found.append(float((score(clamped) - before).mean()))
    return np.array(found)


def clamp_concept(
    model: LanguageModel,
    dictionary: Dictionary,
    activations: csc_array,
    ids: Int[np.ndarray, " position"],
    features: list[int],
    tokens: list[int],
    rng: np.random.Generator,
) -> ClampTest:
    """Every feature of an output concept against the same 100 random features.

    Args:
        model, dictionary: the model and the dictionary of the layer.
        activations: of that layer on read text, sparse [position, feature].
        ids: text from which passages are taken.
        features: of the concept.
        tokens: its words.
        rng: draws the random features.
    """
    alive = np.flatnonzero(sparse.counts(activations) >= MIN_ACTIVATIONS)
    others = np.setdiff1d(alive, features)
    drawn = rng.choice(others, min(RANDOM, len(others)), replace=False)
    own = np.array([f for f in features if sparse.counts(activations)[f]], dtype=int)
    both = np.concatenate([own, drawn])
    found = rises(
        model, dictionary, passages(model, ids), both, usual_maxima(activations, both), tokens
    )
    rise, null = found[: len(own)], found[len(own) :]
    return ClampTest(
        layer=dictionary.layer,
        features=own.tolist(),
        rises=[float(f"{value:.4g}") for value in rise],
        above=[int((value > null).sum()) for value in rise],
        random=len(null),
        random_median=float(f"{np.median(null):.4g}") if len(null) else 0.0,
        random_max=float(f"{null.max():.4g}") if len(null) else 0.0,
    )
