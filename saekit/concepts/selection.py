"""The best small feature set of one layer for a concept: chosen on one half, scored on the other.

A set says "here" at a position where any of its features reaches a share of its own 99th
percentile of positive activations; the share is the same for all features of the set and one of
0.05, 0.10, ..., 0.95.  Features are added greedily, one to four, by F1.  The null is the same
search for labels that were shifted along the text, within parts of equal weight: it knows how often
the concept comes, also in terms of the text as it is, and how it clusters, but not where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.sparse import csc_array
from sklearn.metrics import roc_auc_score

from saekit.activations import sparse
from saekit.concepts.catalogue import LayerScore

BINS = 20  # bin b holds activations of b/20 .. (b+1)/20 of the 99th percentile
MAX_FEATURES = 4
MIN_GAIN = 0.005  # F1 that one more feature must bring on the choosing half
PLATEAU = 0.01  # thresholds whose F1 is this close to the best are equally good
SHORTLIST = 64  # features, best alone, that are tried in sets
MIN_F1, MIN_AUROC, MIN_POSITIVES = 0.5, 0.9, 10
NULL_TRIALS = 3


@dataclass(frozen=True)
class Choice:
    """A feature set and the bin from which on its features count as active."""

    features: list[int]
    bin: int
    f1: float


def percentiles(matrix: csc_array, n_first: int) -> Float[np.ndarray, " d_sae"]:
    """Each feature's 99th percentile of positive activations on the first half (0 if none).

    The largest value that at most 1% of the activations exceed.
    """
    d_sae = len(sparse.counts(matrix))
    p99 = np.zeros(d_sae, dtype=np.float32)
    first = sparse.positions(matrix) < n_first
    feature, values = sparse.features(matrix)[first], sparse.values(matrix)[first]
    values = values[np.lexsort((values, feature))]
    counts = np.bincount(feature, minlength=d_sae)
    ends = np.cumsum(counts)
    alive = counts > 0
    p99[alive] = values[ends[alive] - 1 - (counts[alive] // 100)]
    return p99


def f1_by_threshold(
    hits: Float[np.ndarray, "*set bin"], active: Float[np.ndarray, "*set bin"], positives: float
) -> Float[np.ndarray, "*set bin"]:
    """F1 of "at or above bin b": 2 TP / (predicted + positives).  Bin 0 is never a threshold."""
    true_positives = np.flip(np.cumsum(np.flip(hits, -1), -1), -1)
    predicted = np.flip(np.cumsum(np.flip(active, -1), -1), -1)
    f1 = 2 * true_positives / np.maximum(predicted + positives, 1e-12)
    f1[..., 0] = 0
    return f1


class LayerView:
    """The activations of one layer, arranged for searching feature sets.

    Args:
        matrix: sparse [position, feature] activations.
        n_first: number of positions of the first half.
        weights: of every position, in all counts.

    Attributes:
        p99: see `percentiles`.
    """

    def __init__(self, matrix: csc_array, n_first: int, weights: Float[np.ndarray, " position"]):
        self.n_first, self.n, self.weights = n_first, len(weights), weights
        self.p99 = percentiles(matrix, n_first)
        self.d_sae = len(self.p99)
        feature = sparse.features(matrix)
        scale = np.where(self.p99 > 0, self.p99, np.inf)  # silent on the first half: never counts
        self._starts, self._positions = sparse.starts(matrix), sparse.positions(matrix)
        self._relative = sparse.values(matrix) / scale[feature].astype(np.float32)
        bins = np.minimum(self._relative * BINS, BINS - 1).astype(np.uint8)
        first = self._positions < n_first
        self._first_positions, self._first_bins = self._positions[first], bins[first]
        self._cell = feature[first] * BINS + self._first_bins
        counts = np.bincount(feature[first], minlength=self.d_sae)
        self._first_starts = np.concatenate([[0], np.cumsum(counts)])
        self._active = self._by_cell(weights)

    def _by_cell(self, weights: Float[np.ndarray, " position"]) -> Float[np.ndarray, "d_sae bin"]:
        flat = np.bincount(self._cell, weights[self._first_positions], minlength=self.d_sae * BINS)
        return flat.reshape(self.d_sae, BINS).astype(np.float64)  # whole numbers if empty

    def choose(self, labels: Bool[np.ndarray, " position"]) -> Choice:
        """The best feature set for labels of the first half."""
        all_weights = self.weights[: self.n_first]
        hit_weights = all_weights * labels
        positives = float(hit_weights.sum())
        alone = f1_by_threshold(self._by_cell(hit_weights), self._active, positives).max(1)
        shortlist = [int(f) for f in np.argsort(-alone)[:SHORTLIST] if alone[f] > 0]
        current = np.zeros(self.n_first, dtype=np.uint8)  # highest bin of the set, per position
        chosen: list[int] = []
        best = np.zeros(BINS)  # F1 of the set by threshold
        while len(chosen) < MAX_FEATURES and shortlist:
            active = np.bincount(current, all_weights, minlength=BINS)
            hits = np.bincount(current, hit_weights, minlength=BINS)
            trials = []
            for feature in shortlist:
                part = slice(self._first_starts[feature], self._first_starts[feature + 1])
                positions, bins = self._first_positions[part], self._first_bins[part]
                raised = bins > current[positions]
                at, old, new = positions[raised], current[positions[raised]], bins[raised]
                f1 = f1_by_threshold(
                    hits + _moved(old, new, hit_weights[at]),
                    active + _moved(old, new, all_weights[at]),
                    positives,
                )
                trials.append(f1)
            place = int(np.argmax([f1.max() for f1 in trials]))
            if trials[place].max() < best.max() + (MIN_GAIN if chosen else 1e-9):
                break
            feature, best = shortlist.pop(place), trials[place]
            chosen.append(feature)
            part = slice(self._first_starts[feature], self._first_starts[feature + 1])
            positions = self._first_positions[part]
            current[positions] = np.maximum(current[positions], self._first_bins[part])
        # of nearly equal thresholds the middle one, which has the widest margin on both sides
        near = np.flatnonzero(best[1:] >= best.max() - PLATEAU) + 1
        bin_ = int(near[len(near) // 2])
        return Choice(chosen, bin_, float(best[bin_]))

    def strength(self, features: list[int]) -> Float[np.ndarray, " position"]:
        """Largest activation / p99 over a set, at every position of both halves."""
        strength = np.zeros(self.n, dtype=np.float32)
        for feature in features:
            part = slice(self._starts[feature], self._starts[feature + 1])
            positions = self._positions[part]
            strength[positions] = np.maximum(strength[positions], self._relative[part])
        return strength


def _moved(
    old: UInt8[np.ndarray, " moved"],
    new: UInt8[np.ndarray, " moved"],
    weights: Float[np.ndarray, " moved"],
) -> Float[np.ndarray, " bin"]:
    """Change of a histogram when its members go from old bins to new ones."""
    change = np.bincount(new, weights, minlength=BINS) - np.bincount(old, weights, minlength=BINS)
    return change.astype(np.float64)  # whole numbers if nothing moved


def measure(
    strength: Float[np.ndarray, " position"],
    labels: Bool[np.ndarray, " position"],
    threshold: float,
    weights: Float[np.ndarray, " position"],
) -> tuple[float, float, float, float | None]:
    """F1, precision, recall of `strength >= threshold`, and AUROC of `strength`."""
    predicted = strength >= threshold
    hits = float(weights[predicted & labels].sum())
    called, positives = float(weights[predicted].sum()), float(weights[labels].sum())
    f1 = 2 * hits / (called + positives) if hits else 0.0
    both = 0 < labels.sum() < len(labels)
    auroc = float(roc_auc_score(labels, strength, sample_weight=weights)) if both else None
    return f1, hits / called if hits else 0.0, hits / positives if hits else 0.0, auroc


def shifted(
    labels: Bool[np.ndarray, " half"],
    weights: Float[np.ndarray, " half"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, " half"]:
    """Labels moved along the text by a tenth to nine tenths of its length.

    Positions of equal weight that follow each other are one part of the text
    (`saekit.concepts.sampling`); labels stay in their part.  Shifted over all parts, those of a
    word that was read more often would come to stand where weights are many times as large, and
    the null would be that of a far more frequent word.
    """
    moved = labels.copy()
    for part in np.split(np.arange(len(labels)), np.flatnonzero(np.diff(weights)) + 1):
        if len(part):
            least, most = max(len(part) // 10, 1), max(len(part) * 9 // 10, 1)
            moved[part] = np.roll(labels[part], int(rng.integers(least, most + 1)))
    return moved


def _shifted_f1(
    view: LayerView, labels: Bool[np.ndarray, " position"], rng: np.random.Generator
) -> float:
    """F1 on the second half of the search for labels shifted within each half."""
    n = view.n_first
    weights = view.weights[n:]
    first, second = shifted(labels[:n], view.weights[:n], rng), shifted(labels[n:], weights, rng)
    choice = view.choose(first)
    strength = view.strength(choice.features)[n:]
    return measure(strength, second, choice.bin / BINS, weights)[0]


def score_layer(
    view: LayerView,
    layer: int,
    labels: Bool[np.ndarray, " position"],
    rng: np.random.Generator,
    least: int = MIN_POSITIVES,
) -> LayerScore:
    """Choose on the first half, report on the second, beside the null; see `judged`."""
    first, second = labels[: view.n_first], labels[view.n_first :]
    choice = view.choose(first)
    threshold = choice.bin / BINS
    strength = view.strength(choice.features)[view.n_first :]
    scores = measure(strength, second, threshold, view.weights[view.n_first :])
    null = max(_shifted_f1(view, labels, rng) for _ in range(NULL_TRIALS))
    p99 = [float(view.p99[feature]) for feature in choice.features]
    positives = int(first.sum()), int(second.sum())
    return judged(layer, choice.features, scores, null, positives, threshold, p99, least=least)


def judged(
    layer: int,
    features: list[int],
    scores: tuple[float, float, float, float | None],
    null: float,
    positives: tuple[int, int],
    threshold: float,
    p99: list[float],
    weights: Sequence[float] = (),
    least: int = MIN_POSITIVES,
) -> LayerScore:
    """Measured scores with the verdict.

    `positives` are those of the two halves, of which each needs at least `least`.
    """
    f1, precision, recall, auroc = scores
    enough = min(positives) >= least
    found = bool(enough and f1 >= MIN_F1 and auroc is not None and auroc >= MIN_AUROC and f1 > null)
    return LayerScore(
        layer=layer,
        found=found,
        features=features,
        f1=round(f1, 4),
        precision=round(precision, 4),
        recall=round(recall, 4),
        auroc=None if auroc is None else round(auroc, 4),
        baseline_f1=round(null, 4),
        positives=positives[1],
        threshold=threshold,
        p99=[float(f"{value:.6g}") for value in p99],
        weights=[float(f"{value:.6g}") for value in weights],
    )
