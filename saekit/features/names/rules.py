"""What a feature is called, by rules on what the index knows of it; no model, no LLM.

The first rule that holds gives the name; a later third of the layers tries the output rule first,
because there the current token is still a strong signal while the feature works on the next one.

    input    one word has >= 50% of the feature's activation, and >= 10 times its share of the text
    class    a class of tokens (lexicons.py) has >= 80% of it, and >= 3 times its
             share of the text; of several classes the most special one
    output   one word follows >= 30% of the activation, and >= 10 times as often as elsewhere, or
             two forms of one word (" small", "small") are among the ten most promoted tokens
    context  up to three words that come before >= 50% of the strongest examples, each >= 10 times
             as often as before other positions

Otherwise the feature has no name.  A name that does no better on other text than the name of any
other feature is withdrawn for that of the next rule that holds, and scores are measured on further
text (`saekit.features.names.scoring`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer
from tqdm.auto import tqdm

from saekit.features.index.index_file import BEFORE, IndexFile
from saekit.features.names.lexicons import CLASSES, Words
from saekit.features.names.name_file import LayerNames

PURITY, LIFT = 0.5, 10.0  # a name must be most of the feature, and not just a frequent word
CLASS_SHARE, CLASS_LIFT = 0.8, 3.0  # a class may be a tenth of all tokens
AFTER = 0.3  # the next word is decided by more than one feature: less purity than for the input
PROMOTED = 10
LATE = 2 / 3  # of the layers, after which the output rule comes first
CONTEXT_SHARE, CONTEXT_WORDS, MIN_EXAMPLES = 0.5, 3, 5
MIN_COUNT = 10  # positions a feature must be active at to be named


def name_features(index: IndexFile, n_layers: int | None = None) -> list[LayerNames]:
    """Names of all features of an index, without scores.

    Args:
        index: an open index.
        n_layers: the model's last layer, by which layers are called late (default: the index's).
    """
    last = max(index.layers) if n_layers is None else n_layers
    bars = tqdm(index.layers, desc="naming", unit=" layers")
    return [_name_layer(index, layer, layer > LATE * last) for layer in bars]


def _name_layer(index: IndexFile, layer: int, late: bool) -> LayerNames:
    slot = index.slot(layer)
    own = slice(index.sizes[slot])
    words = index.words_of_text
    names = LayerNames.empty(index.sizes[slot])
    alive = index.summary["count"][slot, own] >= MIN_COUNT
    rules = [_input(index, slot, own), _classes(index, slot, own), _output(index, slot, own)]
    order = (2, 0, 1) if late else (0, 1, 2)
    for which in order:
        text, share, lift, rule = rules[which]
        for feature in np.flatnonzero(alive & (rule > 0)).tolist():
            kind = ("input", "class", "output")[which]
            how = ("current word", "class", "next word")[which]
            how = "promoted twice" if rule[feature] == 2 else how
            name = (text[feature], kind, how, float(share[feature]), float(lift[feature]))
            names.others.setdefault(feature, []).append(name)
    for feature, words_before, share, lift in _contexts(index, slot, np.flatnonzero(alive), words):
        name = (words_before, "context", "context", share, lift)
        names.others.setdefault(feature, []).append(name)
    for feature in names.others:
        names.next_name(feature)
    return names


_Rule = tuple[list[str], np.ndarray, np.ndarray, np.ndarray]  # texts, share, lift, 1 where it holds


def _shares(
    index: IndexFile, name: str, slot: int, own: slice
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """The first word of a statistic: texts, shares, lifts, and whether it can be shown."""
    words = index.words_of_text
    number = words.of_token[index.read(f"features/{name}", slot, own, 0)]
    share = index.read(f"features/{name}_share", slot, own, 0) / 255
    lift = share * index.n_tokens / np.maximum(1, index.word_counts[number])
    texts = [words.texts[n] for n in number.tolist()]
    return texts, share, lift, words.nameable[number]


def _input(index: IndexFile, slot: int, own: slice) -> _Rule:
    texts, share, lift, nameable = _shares(index, "word", slot, own)
    return texts, share, lift, nameable & (share >= PURITY) & (lift >= LIFT)


def _classes(index: IndexFile, slot: int, own: slice) -> _Rule:
    number = index.read("features/class", slot, own).astype(np.int64)
    share = index.read("features/class_share", slot, own) / 255
    counts = [0] + [
        int(index.token_counts[index.words_of_text.members(name)].sum()) if name in CLASSES else 0
        for name in index.classes
    ]
    lift = share * index.n_tokens / np.maximum(1, np.array(counts)[number])
    texts = [["", *index.classes][n] for n in number.tolist()]
    holds = (np.array(counts)[number] > 0) & (share >= CLASS_SHARE) & (lift >= CLASS_LIFT)
    return texts, share, lift, holds


def _output(index: IndexFile, slot: int, own: slice) -> _Rule:
    texts, share, lift, nameable = _shares(index, "after", slot, own)
    rule = (nameable & (share >= AFTER) & (lift >= LIFT)).astype(np.int64)
    words = index.words_of_text
    top = min(index.n_promoted, PROMOTED)
    promoted = words.of_token[index.read("features/output_token", slot, own, slice(top))]
    value = index.read("features/output_value", slot, own, slice(top)).astype(np.float64)
    for feature in np.flatnonzero(rule == 0).tolist():
        shown = np.where(words.nameable[promoted[feature]], promoted[feature], -1).tolist()
        number = _twice(shown)
        if number is not None:
            place = shown.index(number)
            texts[feature], rule[feature] = words.texts[number], 2
            share[feature], lift[feature] = value[feature, place], 0.0
    return texts, share, lift, rule


def _twice(numbers: Sequence[int]) -> int | None:
    """The first number that comes again; negative ones do not count."""
    return next((n for place, n in enumerate(numbers) if n >= 0 and n in numbers[:place]), None)


def _contexts(
    index: IndexFile, slot: int, features: Int[np.ndarray, " n"], words: Words
) -> list[tuple[int, str, float, float]]:
    """(feature, name, share, lift) of the features that a word in front tells."""
    if not len(features):
        return []
    row = index.read("examples/row", slot)[features].astype(np.int64)
    place = index.read("examples/place", slot)[features].astype(np.int64)
    rows = index.read("contexts")
    # chance of a word among BEFORE tokens, were they independent
    chance = 1 - (1 - index.word_counts / index.n_tokens) ** BEFORE
    allowed = words.nameable & np.array([text.isalpha() for text in words.texts])
    found = []
    for feature, its_rows, places in zip(features.tolist(), row, place, strict=True):
        used = its_rows >= 0
        if used.sum() < MIN_EXAMPLES:
            continue
        before = [
            context_words(rows[r], p, index.bos, words)
            for r, p in zip(its_rows[used].tolist(), places[used].tolist(), strict=True)
        ]
        number, times = np.unique(np.concatenate(before), return_counts=True)
        share = times / len(before)
        lift = share / np.maximum(chance[number], 1e-9)
        good = np.flatnonzero((share >= CONTEXT_SHARE) & (lift >= LIFT) & allowed[number])
        good = good[np.argsort(-lift[good], kind="stable")][:CONTEXT_WORDS]
        if len(good):
            text = ", ".join(words.texts[n] for n in number[good].tolist())
            found.append((feature, text, float(share[good[0]]), float(lift[good[0]])))
    return found


def context_words(
    row: Integer[np.ndarray, " pos"], place: int, bos: int, words: Words
) -> Int[np.ndarray, " word"]:
    """The distinct words among the `BEFORE` tokens in front of a place, of the same document."""
    tokens = row[max(0, place - BEFORE) : place]
    ends = np.flatnonzero(tokens == bos)
    return np.unique(words.of_token[tokens[ends[-1] + 1 if len(ends) else 0 :]])
