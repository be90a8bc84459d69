"""A labeller's names put in the place of those by rules, and the scores of its free texts."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool
from tqdm.auto import tqdm

from saekit.errors import InputError
from saekit.features.held_out import HeldOut
from saekit.features.index.feature_index import FeatureIndex
from saekit.features.names.labellers import Label, Labeller
from saekit.features.names.lexicons import CLASSES
from saekit.features.names.name_file import KINDS, LayerNames
from saekit.features.names.scoring import TEXT, Contexts, LayerScorer, balanced

Judge = Callable[[str, Sequence[str], str], list[bool]]
DETECT, FUZZ = "detection", "fuzzing"  # tasks of a judge


def give_labels(
    index: FeatureIndex,
    names: list[LayerNames],
    labeller: Labeller,
    features: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Ask a labeller for the names of some features, or of all.

    Raises:
        InputError: no such feature; a label of an unknown kind, class or word.
    """
    every = ((layer, f) for layer, own in zip(index.layers, names, strict=True)
             for f in range(len(own.text)))  # fmt: skip
    for layer, feature in tqdm(features or list(every), desc="labelling", unit=" features"):
        record = index.feature(layer, feature)
        given = labeller(record)
        label = Label(given) if isinstance(given, str) else given
        if not isinstance(label, Label | None):
            raise InputError(
                f"The labeller gave {record.name} a {type(given).__name__}; it must return a "
                "Label, a text or None."
            )
        own = names[index.slot(layer)]
        if label is None:
            own.set(feature, "", "", "", 0, 0)
            continue
        _check(index, record.name, label)
        text = label.text if label.kind in ("text", "class") else label.text.strip().lower()
        own.set(feature, text, label.kind, "labeller", 0, 0)


def _check(index: FeatureIndex, name: str, label: Label) -> None:
    words = {"input": [label.text], "output": [label.text], "context": label.text.split(", ")}
    if label.kind not in KINDS[1:] or not label.text.strip():
        raise InputError(
            f'The labeller gave {name} the label "{label.text}" of kind "{label.kind}"; '
            f"kinds are {', '.join(KINDS[1:])}, and a label is not empty."
        )
    if label.kind == "class" and label.text not in CLASSES:
        raise InputError(
            f'The labeller gave {name} the class "{label.text}"; known are {", ".join(CLASSES)}.'
        )
    for word in words.get(label.kind, ()):
        if index.words_of_text.number(word.strip().lower()) is None:
            raise InputError(
                f'The labeller gave {name} the word "{word}", which is no single token of '
                f'{index.model}; give another one, or a label of kind "text".'
            )


def score_free_labels(
    index: FeatureIndex, names: list[LayerNames], labeller: Labeller, text: HeldOut, seed: int = 0
) -> None:
    """Detection and fuzzing of labels of kind "text", as answered by the labeller's `judge`.

    There are no hard negatives: they would need a rule that says where a free text holds.  The null
    is the text of the next feature in the list.  Nothing is scored without a `judge`.
    """
    judge: Judge | None = getattr(labeller, "judge", None)
    if judge is None:
        return
    todo = [
        (layer, own, feature)
        for layer, own in zip(index.layers, names, strict=True)
        for feature in np.flatnonzero(own.kind == TEXT).tolist()
    ]
    labels = [own.text[feature] for _, own, feature in todo]
    for place, (layer, own, feature) in enumerate(tqdm(todo, desc="asking", unit=" labels")):
        scorer = LayerScorer(text, text.layers[layer], seed)
        contexts = scorer.contexts(feature, np.zeros(0, np.int64))
        if not contexts.enough:
            continue
        others = [label for label in labels[place + 1 :] + labels[:place] if label != labels[place]]
        for prefix, label in (("", labels[place]), ("null_", others[0] if others else None)):
            if label is not None:
                detection, fuzzing = _ask(judge, label, contexts, text, index.vocabulary)
                own.scores[f"{prefix}detection"][feature] = detection
                own.scores[f"{prefix}fuzzing"][feature] = fuzzing


def _ask(
    judge: Judge, label: str, contexts: Contexts, text: HeldOut, vocabulary: list[str]
) -> tuple[float, float]:
    """Detection and fuzzing of one label."""
    passages = np.concatenate([contexts.positives, contexts.negatives])
    said = _said(judge, label, [_excerpt(text, p, vocabulary) for p in passages.tolist()], DETECT)
    true = np.arange(len(passages)) < len(contexts.positives)
    items = []
    for item in range(len(contexts.active)):
        marks = contexts.marks[contexts.mark_of == item]
        passage = int(marks[0]) // text.passage
        items.append(_excerpt(text, passage, vocabulary, set(marks.tolist())))
    fuzzed = _said(judge, label, items, FUZZ)
    return balanced(said, true), balanced(fuzzed, contexts.active)


def _said(judge: Judge, label: str, excerpts: list[str], task: str) -> Bool[np.ndarray, " excerpt"]:
    """The judge's answers.  It is asked in random order: what comes first must tell nothing.

    Raises:
        InputError: not one per excerpt.
    """
    order = np.random.default_rng(len(excerpts)).permutation(len(excerpts))
    answers = judge(label, [excerpts[at] for at in order], task)
    if len(answers) != len(excerpts):
        raise InputError(
            f"The labeller's judge gave {len(answers)} answers to {len(excerpts)} excerpts "
            f'({task} of "{label}"); it must give one for each.'
        )
    said = np.zeros(len(excerpts), bool)
    said[order] = answers
    return said


def _excerpt(
    text: HeldOut, passage: int, vocabulary: list[str], marks: set[int] | None = None
) -> str:
    """A passage as text, BOS as a line break, marked tokens between << and >>."""
    start = passage * text.passage
    parts = []
    for position in range(start, start + text.passage):
        token = int(text.tokens[position])
        piece = vocabulary[token] if token >= 0 else "\n"
        parts.append(f"<<{piece}>>" if marks and position in marks else piece)
    return "".join(parts)
