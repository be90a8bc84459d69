"""How well a name tells where its feature is active, on text the name was not made from.

Detection (is the feature active in this passage?) and fuzzing (is it active on the marked tokens?)
follow EleutherAI's delphi; the one who answers is the name itself, which is a predicate on tokens
(`saekit.features.names.predicates`), so the answers are exact.

    positives  up to 50 passages with an activation, spread evenly over the quantiles of their
               largest activation
    negatives  up to 50 random passages without one, and *hard* ones: of up to 50 random passages
               in which the name holds, those in which the feature is not active
    detection  (share of positives in which the name holds somewhere + share of negatives in which
               it holds nowhere) / 2
    fuzzing    positives have their active tokens marked; negatives are the same passages with as
               many random silent tokens marked, and of up to 50 random positions at which the name
               holds, those where the feature is silent, marked alone; the answer is yes if the name
               holds at half of the marked tokens or more; (true positive + true negative rate) / 2
    null       the same passages and marks, judged by the name of another feature of the layer that
               is active about as often; 0.5 is expected
    precision, recall, f1   of "the name holds here" as a forecast of "is active here", at all
               positions
    auroc      of the activation as a sign of "the name holds here", all positions

As many hard negatives are drawn as the name deserves: a name that holds where its feature is silent
half of the time has 25 of them, and is wrong on all.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array
from scipy.stats import rankdata

from saekit.features.held_out import HeldOut
from saekit.features.names.name_file import KINDS, RULES, LayerNames
from saekit.features.names.predicates import Predicates

TEXT = KINDS.index("text")  # free text is no predicate
DRAWN = 50
MIN_DETECTION = 0.55  # chance is 0.5, with a deviation of 0.05 for 50 + 50 passages
MIN_PASSAGES = 10  # positives, and negatives, below which nothing is said


@dataclass
class Contexts:
    """The passages and marks by which one feature's name is judged.

    Attributes:
        positives, negatives: passages.
        marks: positions that are marked, and `mark_of` in which item of fuzzing each is.
        active: whether each item of fuzzing is one of marked active tokens.
    """

    positives: Int[np.ndarray, " positive"]
    negatives: Int[np.ndarray, " negative"]
    marks: Int[np.ndarray, " mark"]
    mark_of: Int[np.ndarray, " mark"]
    active: Bool[np.ndarray, " item"]

    @property
    def enough(self) -> bool:
        return min(len(self.positives), len(self.negatives)) >= MIN_PASSAGES

    def detection(self, in_passage: Bool[np.ndarray, " passage"]) -> float:
        """Balanced accuracy of "the name holds somewhere in the passage"."""
        hits, misses = in_passage[self.positives].mean(), in_passage[self.negatives].mean()
        return float(hits + 1 - misses) / 2

    def fuzzing(self, holds: Bool[np.ndarray, " position"]) -> float:
        """Balanced accuracy of "the name holds at half of the marked tokens"."""
        n = len(self.active)
        share = np.bincount(self.mark_of, holds[self.marks], n) / np.bincount(
            self.mark_of, minlength=n
        )
        return balanced(share >= 0.5, self.active)


def balanced(said: Bool[np.ndarray, " item"], true: Bool[np.ndarray, " item"]) -> float:
    """Balanced accuracy; NaN without items of both kinds."""
    if not true.any() or true.all():
        return float("nan")
    return float(said[true].mean() + 1 - said[~true].mean()) / 2


class LayerScorer:
    """Judges names of one layer's features.

    Args:
        text: held-out text.
        activations: of the layer, sparse [position, feature].
        seed: of the draws; those of one feature do not depend on other features.
    """

    def __init__(self, text: HeldOut, activations: csc_array, seed: int = 0):
        self.text, self.activations, self.seed = text, activations, seed
        self.n_passages = len(text.tokens) // text.passage
        self._counted = text.tokens >= 0

    def active(self, feature: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Positions at which a feature is active, ascending, and its activations there."""
        part = slice(*self.activations.indptr[feature : feature + 2])
        return self.activations.indices[part], self.activations.data[part]

    def contexts(self, feature: int, holds_at: Int[np.ndarray, " hit"]) -> Contexts:
        """Draw the passages and marks for one feature and the positions at which its name holds."""
        rng = np.random.default_rng((self.seed, feature))
        position, value = self.active(feature)
        passage = position // self.text.passage
        own, start = np.unique(passage, return_index=True)
        silent = np.ones(self.n_passages, bool)
        silent[own] = False
        positives = own
        if len(own) > DRAWN:
            order = np.argsort(np.maximum.reduceat(value, start), kind="stable")
            positives = own[order[np.linspace(0, len(own) - 1, DRAWN).astype(np.int64)]]
        random = _draw(rng, np.flatnonzero(silent), DRAWN)
        hard = _draw(rng, np.unique(holds_at // self.text.passage), DRAWN)
        negatives = np.concatenate([random, hard[silent[hard]]])
        return Contexts(
            positives, negatives, *self._marks(rng, positives, position, passage, holds_at)
        )

    def _marks(
        self,
        rng: np.random.Generator,
        positives: Int[np.ndarray, " positive"],
        position: Int[np.ndarray, " n"],
        passage: Int[np.ndarray, " n"],
        holds_at: Int[np.ndarray, " hit"],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Marked positions, the item of each, and which items are of active tokens."""
        positives = np.sort(positives)
        n = len(positives)
        item = np.searchsorted(positives, passage)
        chosen = item < n
        chosen[chosen] = positives[item[chosen]] == passage[chosen]
        marks, mark_of = [position[chosen]], [item[chosen]]
        # as many random silent tokens of the same passages
        grid = positives[:, None] * self.text.passage + np.arange(self.text.passage)
        free = self._counted[grid]
        free[item[chosen], position[chosen] % self.text.passage] = False
        wanted = np.minimum(np.bincount(item[chosen], minlength=n), free.sum(-1))
        rank = np.argsort(np.argsort(np.where(free, rng.random(grid.shape), 2), -1), -1)
        row, column = np.nonzero(free & (rank < wanted[:, None]))
        numbers = np.full(n, -1)
        numbers[np.unique(row)] = n + np.arange(len(np.unique(row)))
        marks.append(grid[row, column])
        mark_of.append(numbers[row])
        n_items = n + len(np.unique(row))
        hard = _draw(rng, holds_at, DRAWN)
        hard = hard[~np.isin(hard, position, assume_unique=True)]
        marks.append(hard)
        mark_of.append(n_items + np.arange(len(hard)))
        active = np.arange(n_items + len(hard)) < n
        return np.concatenate(marks), np.concatenate(mark_of), active

    def position_scores(self, feature: int, holds_at: Int[np.ndarray, " hit"]) -> dict[str, float]:
        """precision, recall, f1 and auroc over all positions; NaN where undefined."""
        position, value = self.active(feature)
        here = np.isin(position, holds_at, assume_unique=True)
        hits, n_true, n = int(here.sum()), len(holds_at), int(self._counted.sum())
        nan = float("nan")
        return {
            "precision": hits / n_true if n_true else nan,
            "recall": hits / len(position) if len(position) else nan,
            "f1": 2 * hits / (n_true + len(position)) if n_true + len(position) else nan,
            "auroc": auroc(value, here, n_true, n - n_true),
        }


def auroc(
    value: Float[np.ndarray, " n"], here: Bool[np.ndarray, " n"], n_true: int, n_false: int
) -> float:
    """Area under the ROC curve of a sparse score: `value` where active, 0 at all other positions.

    Args:
        value: positive activations.
        here: which of them are at true positions.
        n_true, n_false: positions of each kind, active or not.
    """
    if not n_true or not n_false:
        return float("nan")
    silent_true, silent_false = n_true - int(here.sum()), n_false - int((~here).sum())
    rank = rankdata(value)
    hits = int(here.sum())
    among_active = float(rank[here].sum()) - hits * (hits + 1) / 2
    below = among_active + hits * silent_false + silent_true * silent_false / 2
    return below / (n_true * n_false)


def _draw(rng: np.random.Generator, pool: np.ndarray, n: int) -> np.ndarray:
    """Up to `n` entries without repeats."""
    return pool if len(pool) <= n else rng.choice(pool, n, replace=False, shuffle=False)


def partners(names: LayerNames, count: Int[np.ndarray, " d_sae"]) -> Int[np.ndarray, " d_sae"]:
    """For every named feature the nearest one in frequency with another name; -1 for none.

    Free texts are no predicates: judged like one they would hold nowhere, a null of exactly 0.5.
    """
    named = np.array(_predicates(names), np.int64)
    order = named[np.argsort(count[named], kind="stable")]
    labels = [(int(names.kind[f]), names.text[f]) for f in order.tolist()]
    result = np.full(len(count), -1)
    for place, feature in enumerate(order.tolist()):
        for other in (p for step in range(1, len(order)) for p in (place + step, place - step)):
            if 0 <= other < len(order) and labels[other][1] != labels[place][1]:
                result[feature] = order[other]
                break
    return result


def score_layer(
    names: LayerNames,
    layer: int,
    choose: tuple[HeldOut, Predicates],
    report: tuple[HeldOut, Predicates],
    seed: int = 0,
) -> None:
    """Fill `names.scores` of one layer, but for the clamping.

    Args:
        names: of the layer.
        layer: its number.
        choose, report: the two parts of held-out text.  On the first a name that is no better than
            chance is replaced by the next one; all scores but `chosen_detection` are of the second.
        seed: of the draws.
    """
    scorers = [LayerScorer(text, text.layers[layer], seed) for text, _ in (choose, report)]
    for feature in _predicates(names):
        _choose(names, feature, scorers[0], choose[1])
    other = partners(names, np.diff(scorers[1].activations.indptr))
    for feature in _predicates(names):
        label = KINDS[names.kind[feature]], names.text[feature]
        null_at = None
        if other[feature] >= 0:
            null = KINDS[names.kind[other[feature]]], names.text[other[feature]]
            null_at = report[1].positions(*null)
        holds_at = report[1].positions(*label)
        found = scorers[1].position_scores(feature, holds_at)
        found |= _judged(scorers[1], feature, holds_at, null_at)
        for name, value in found.items():
            names.scores[name][feature] = value


def _predicates(names: LayerNames) -> list[int]:
    """The features whose name is a predicate on tokens."""
    return np.flatnonzero((names.kind > 0) & (names.kind != TEXT)).tolist()


def _choose(names: LayerNames, feature: int, scorer: LayerScorer, predicates: Predicates) -> None:
    """Keep the first of a feature's names that does better than chance; else it has none.

    A name that cannot be measured is kept: it is shown as not measured.  So is a labeller's.
    """
    while True:
        label = KINDS[names.kind[feature]], names.text[feature]
        found = _judged(scorer, feature, predicates.positions(*label))
        detection = found.get("detection", np.nan)
        names.scores["chosen_detection"][feature] = detection
        if not detection < MIN_DETECTION or RULES[names.rule[feature]] == "labeller":
            return
        if not names.next_name(feature):
            return


def _judged(
    scorer: LayerScorer,
    feature: int,
    holds_at: Int[np.ndarray, " hit"],
    null_at: Int[np.ndarray, " other"] | None = None,
) -> dict[str, float]:
    """Detection and fuzzing of a name and of another name; empty with too few passages."""
    contexts = scorer.contexts(feature, holds_at)
    found: dict[str, float] = {}
    if contexts.enough:
        for prefix, positions in (("", holds_at), ("null_", null_at)):
            if positions is not None:
                holds, in_passage = _flags(scorer, positions)
                found[f"{prefix}detection"] = contexts.detection(in_passage)
                found[f"{prefix}fuzzing"] = contexts.fuzzing(holds)
    return found


def _flags(
    scorer: LayerScorer, holds_at: Int[np.ndarray, " hit"]
) -> tuple[Bool[np.ndarray, " position"], Bool[np.ndarray, " passage"]]:
    """A name as a mask of positions and of passages."""
    holds = np.zeros(len(scorer.text.tokens), bool)
    holds[holds_at] = True
    return holds, np.asarray(holds.reshape(-1, scorer.text.passage).any(-1))
