"""Names for all features of an index, with scores: from an index and text to `names.h5`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from saekit.activations import Text
from saekit.features.effects import QUANTILE, Clamping, logit_rises, prompts_of, quantiles
from saekit.features.held_out import HeldOut, read_held_out
from saekit.features.index.feature_index import FeatureIndex
from saekit.features.index.index_file import IndexFile
from saekit.features.names.labellers import Labeller
from saekit.features.names.labels import give_labels, score_free_labels
from saekit.features.names.name_file import (
    GOOD,
    KINDS,
    NAMES,
    SHARES,
    LayerNames,
    write_names,
)
from saekit.features.names.predicates import Predicates
from saekit.features.names.rules import MIN_COUNT, name_features
from saekit.features.names.scoring import score_layer
from saekit.files import ensure_writable
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import DictionarySet

OUTPUT = KINDS.index("output")


def make_names(
    model: LanguageModel,
    dictionaries: DictionarySet,
    index_path: str | Path,
    documents: Text,
    out_path: str | Path | None = None,
    tokens: int = 120_000,
    text_name: str = "",
    seed: int = 0,
    labeller: Labeller | None = None,
    features: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """Name every feature of an index by rules and score the names on text of other parts.

    Args:
        model: the model.
        dictionaries: those the index was built from (checked).
        index_path: the index.
        documents: text; the parts that `saekit index` leaves out are read (`saekit.text.parts`).
        out_path: the file to write (default: `names.h5` beside the index).
        tokens: positions to score on, in both parts together; memory grows with them, by about 8
            bytes * k * layers each.
        text_name: what the text is, in words.
        seed: of what is drawn for the scores.
        labeller: names features instead of the rules (see `saekit.features.names.labellers`).
        features: (layer, feature) of those that the labeller names, all others keep the names by
            rules; None for all.

    Returns:
        The file.

    Raises:
        FormatError, MismatchError: the index is broken or belongs to others.
        InputError: too little text, or a file that cannot be written.
    """
    with FeatureIndex.open(index_path) as index:
        dictionaries.check_model(model)
        index.check_dictionaries(dictionaries)
        path = Path(out_path) if out_path else index.path.parent / NAMES
        ensure_writable(path.parent)
        names = name_features(index, model.n_layers)
        if labeller is not None:
            give_labels(index, names, labeller, features)
        choose, report = read_held_out(model, dictionaries, documents, tokens)
        score_names(model, dictionaries, index, names, choose, report, seed)
        if labeller is not None:
            score_free_labels(index, names, labeller, report, seed)
        who = "rules" if labeller is None else getattr(labeller, "model", "a function")
        write_names(
            path, index, names, labeller=who, text=text_name,
            n_tokens=choose.n_tokens + report.n_tokens, summary=summary(names),
        )  # fmt: skip
    return path


def score_names(
    model: LanguageModel,
    dictionaries: DictionarySet,
    index: IndexFile,
    names: list[LayerNames],
    choose: HeldOut,
    report: HeldOut,
    seed: int = 0,
) -> None:
    """Fill the scores of names that are predicates on tokens (see scoring.py)."""
    words = index.words_of_text
    predicates = [(text, Predicates(text, words)) for text in (choose, report)]
    clamping = Clamping(model, prompts_of(report.rows).to(model.device))
    for layer, own in zip(index.layers, tqdm(names, desc="scoring", unit=" layers"), strict=True):
        score_layer(own, layer, *predicates, seed=seed)
        slot = index.slot(layer)
        sized = slice(index.sizes[slot])
        values = quantiles(
            index.read("features/histogram", slot, sized),
            index.read("features/log2_range", slot, sized),
            QUANTILE,
        )
        named = {
            feature: tokens
            for feature in np.flatnonzero(own.kind == OUTPUT).tolist()
            if (tokens := _tokens(index, own.text[feature]))
        }
        alive = np.flatnonzero(index.summary["count"][slot, sized] >= MIN_COUNT)
        rises = logit_rises(clamping, dictionaries[layer], named, values, alive, seed)
        for feature, (rise, rank) in rises.items():
            own.scores["rise"][feature], own.scores["rise_rank"][feature] = rise, rank


def _tokens(index: IndexFile, word: str) -> list[int]:
    """The forms of a word that occur in the indexed text."""
    number = index.words_of_text.number(word)
    forms = np.flatnonzero(index.words_of_text.of_token == (-1 if number is None else number))
    used = forms[index.token_counts[forms] > 0]
    return (used if len(used) else forms).tolist()


def summary(names: list[LayerNames]) -> dict[str, Any]:
    """Per kind: how many names, how many reliable ones, mean scores and mean nulls."""
    kinds = np.concatenate([own.kind for own in names])
    scores = {name: np.concatenate([own.scores[name] for own in names]) for name in SHARES}
    result: dict[str, Any] = {"features": len(kinds), "named": int((kinds > 0).sum())}
    for number, kind in enumerate(KINDS):
        here = kinds == number
        if kind and here.any():
            means = {name: _mean(column[here]) for name, column in scores.items()}
            measured = scores["detection"][here]
            result[kind] = {
                "names": int(here.sum()),
                "measured": int((~np.isnan(measured)).sum()),
                "reliable": int((measured >= GOOD).sum()),
                **means,
            }
    return result


def _mean(column: np.ndarray) -> float | None:
    known = column[~np.isnan(column)]
    return round(float(known.mean()), 4) if len(known) else None
