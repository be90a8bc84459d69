"""Feature sets for output concepts: their direct effects on the named tokens' logits, summed.

What features write adds up in a logit, so an output concept is detected by a sum, not by any one
feature.  A feature's weight is not fitted: it is what one unit of it adds along the direct path,

    w_s = (d_s C * gamma_f) . (mean over the tokens of W_U  -  mean over the vocabulary of W_U)

(C centres), over the deviation sigma of the stream at that position, by which the final LayerNorm
divides.  (Norms differ so much between positions that without sigma not even the exact logit tells
where a word is likely.)  A set says "here" where sum_s w_s f_s / sigma reaches a threshold; sets of
one to eight features are grown greedily by F1 + AUROC (the two scores a concept is accepted by) on
the first half of the text and scored on the second, beside the same search for shifted labels
(selection.py).

What a single feature of the set can do is tested by clamping it: it is set to the 90th percentile
of its positive activations at the last position of some passages (`saekit.features.effects`), and
the rise of the words' logit is compared with that of 100 random features of the layer that are
alive and not of the concept: the null that says whether "writes this word" is more than any push
does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array
from torch import Tensor

from saekit.activations import sparse
from saekit.concepts.catalogue import ClampTest, LayerScore
from saekit.concepts.selection import (
    MIN_GAIN,
    NULL_TRIALS,
    PLATEAU,
    f1_by_threshold,
    judged,
    measure,
    shifted,
)
from saekit.features.effects import QUANTILE, Clamping
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import Dictionary

MAX_FEATURES = 8  # what says a word depends on why: copied, opposite, synonym ...
BINS = 50  # thresholds are steps of 1/49 of the usual maximum
SHORTLIST = 40  # features that add most to the tokens where the concept holds
RANDOM, MIN_ACTIVATIONS = 100, 30  # alive: active at 30 positions or more
PASSAGES, LENGTH = 16, 32  # that features are clamped on
TOP = 0.99  # the usual maximum: this quantile where the concept holds


@torch.no_grad()
def direct_effects(
    model: LanguageModel, dictionary: Dictionary, tokens: Sequence[int]
) -> Float[np.ndarray, " d_sae"]:
    """w_s of every feature: centred logit of the tokens per unit of activation, for sigma = 1."""
    decoder = model.decoder
    W_U = decoder.W_U.float()
    direction = decoder.gamma_f.float() * (W_U[:, list(tokens)].mean(1) - W_U.mean(1))
    rows = dictionary.W_dec.to(direction)
    return (decoder.centred(rows) @ direction).cpu().numpy()


def deviations(model: LanguageModel, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """sigma of a stream: what the final norm would divide it by."""
    centred = model.decoder.centred(x.float())
    return (centred.square().mean(-1) + model.decoder.eps).sqrt()


class OutputView:
    """The contributions of one layer's features to one output concept.

    Args:
        activations: sparse [position, feature].
        n_first: positions of the first half.
        weights: of every position, in all counts.
        effects: see `direct_effects`.
        sigma: see `deviations`; at every position.
    """

    def __init__(
        self,
        activations: csc_array,
        n_first: int,
        weights: Float[np.ndarray, " position"],
        effects: Float[np.ndarray, " d_sae"],
        sigma: Float[np.ndarray, " position"],
    ):
        self.activations, self.n_first = activations, n_first
        self.weights, self.effects, self.sigma = weights, effects, sigma

    def contributions(self, features: Sequence[int]) -> Float[np.ndarray, "position set"]:
        """w_s f_s / sigma of some features at every position."""
        chosen = list(features)
        dense = np.asarray(self.activations[:, chosen].todense(), dtype=np.float32)
        return dense * self.effects[chosen].astype(np.float32) / self.sigma[:, None]

    def choose(self, labels: Bool[np.ndarray, " first"]) -> tuple[list[int], float, float]:
        """The best set for labels of the first half: (features, usual maximum, threshold share)."""
        n, weights = self.n_first, self.weights[: self.n_first]
        totals = (weights * labels / self.sigma[:n]) @ self.activations[:n] * self.effects
        shortlist = [int(f) for f in np.argsort(-totals)[:SHORTLIST] if totals[f] > 0]
        parts = self.contributions(shortlist)[:n]
        chosen: list[int] = []
        current = np.zeros(n, dtype=np.float32)
        best, top, share = 0.0, 1.0, 0.5
        while len(chosen) < min(MAX_FEATURES, len(shortlist)):
            trials = []
            for place in range(len(shortlist)):
                if place not in chosen:
                    trials.append((*_judge(current + parts[:, place], labels, weights), place))
            score, trial_top, trial_share, place = max(trials)
            if score < best + (MIN_GAIN if chosen else 1e-9):
                break
            best, top, share = score, trial_top, trial_share
            chosen.append(place)
            current = current + parts[:, place]
        return [shortlist[place] for place in chosen], top, share

    def f1_and_more(
        self, labels: Bool[np.ndarray, " second"], first: Bool[np.ndarray, " first"]
    ) -> tuple[tuple[float, float, float, float | None], list[int], float, float]:
        """Choose for `first`, measure on the second half: (scores, features, maximum, share)."""
        features, top, share = self.choose(first)
        strength = self.contributions(features)[self.n_first :].sum(1) / top
        scores = measure(strength, labels, share, self.weights[self.n_first :])
        return scores, features, top, share


def _judge(
    strength: Float[np.ndarray, " position"],
    labels: Bool[np.ndarray, " position"],
    weights: Float[np.ndarray, " position"],
) -> tuple[float, float, float]:
    """(best F1 + AUROC, usual maximum, threshold as a share of it), from a histogram.

    Bin 0 holds strength 0 alone, bin b strengths above (b - 1) / (BINS - 1) of the maximum.
    """
    top = float(np.quantile(strength[labels], TOP)) if labels.any() else 0.0
    if top <= 0:
        return 0.0, 1.0, 0.5
    bins = np.clip(np.ceil(strength / top * (BINS - 1)), 0, BINS - 1).astype(np.intp)
    active = np.bincount(bins, weights, minlength=BINS)
    hits = np.bincount(bins, weights * labels, minlength=BINS)
    misses = active - hits
    below = np.cumsum(misses) - misses / 2  # ties count half
    auroc = float((hits * below).sum() / max(hits.sum() * misses.sum(), 1e-12))
    f1 = f1_by_threshold(hits, active, float(hits.sum()))
    f1[1] = 0  # any activity at all is no threshold
    near = np.flatnonzero(f1 >= f1.max() - PLATEAU)  # the middle one has the widest margin
    return float(f1.max()) + auroc, top, (int(near[len(near) // 2]) - 1) / (BINS - 1)


def score_output_layer(
    view: OutputView, layer: int, labels: Bool[np.ndarray, " position"], rng: np.random.Generator
) -> LayerScore:
    """Choose on the first half, report on the second, beside the null."""
    first, second = labels[: view.n_first], labels[view.n_first :]
    scores, features, top, share = view.f1_and_more(second, first)
    nulls = []
    for _ in range(NULL_TRIALS):
        moved_first = shifted(first, view.weights[: view.n_first], rng)
        moved_second = shifted(second, view.weights[view.n_first :], rng)
        nulls.append(view.f1_and_more(moved_second, moved_first)[0][0])
    usual = np.asarray(view.activations[: view.n_first, features].todense())
    return judged(
        layer,
        features,
        scores,
        max(nulls),
        (int(first.sum()), int(second.sum())),
        threshold=share,
        p99=[
            float(np.quantile(column[column > 0], TOP)) if (column > 0).any() else 0.0
            for column in usual.T
        ],
        weights=[float(view.effects[feature]) / top for feature in features],
    )


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
    values = usual_maxima(activations, both)
    clamping = Clamping(model, passages(model, ids))
    found = clamping.rises(dictionary, both.tolist(), values, [tokens])[:, 0].cpu().numpy()
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
