"""Interventions in words, and which dictionary features they hold at which values.

    large@5=0       the concept's features that are active at position 5 are held at 0, at every
                    layer of the concept's span there (8/1234@5=3 does it with one feature)
    large@5->hot    the content of position 5 becomes that of "hot", by features alone

For a swap the prompt is run once more with the other word's token in that place.  At each layer
the features that are active in one of the two runs and not in the other are held at what they are
in the other run: those of "large" at 0, those of "hot" at their values.  Features that both runs
share, and what the dictionary does not reconstruct, stay.  The layers are those of the concept's
span at that position; a word that is no concept there is swapped at the lower half of the layers
(`SWAPPED_SHARE`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saekit.coordinates import parse_feature
from saekit.errors import InputError
from saekit.model.exact import Forward
from saekit.routes.intervention.holds import Clamp
from saekit.routes.prompt_run import PromptRun
from saekit.routes.target import activations, in_the_stream
from saekit.sae.storage.dictionary_set import DictionarySet

SWAPPED_SHARE = 0.5  # of the blocks: where a word's own content is before heads have moved it on
_SET = re.compile(r"\s*(.+?)\s*@\s*(\d+)\s*=\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_SWAP = re.compile(r"\s*(.+?)\s*@\s*(\d+)\s*->\s*(.+?)\s*")


@dataclass(frozen=True)
class Change:
    """One intervention in words: `value` of a hold, or `word` of a swap."""

    text: str
    name: str
    position: int
    value: float | None = None
    word: str | None = None


@dataclass(frozen=True)
class Resolved:
    """What a change holds where; `other` is the run with the other word, of a swap."""

    text: str
    position: int
    clamps: list[Clamp]
    other: Forward | None = None


def parse_change(text: str) -> Change:
    """`large@5=0` or `large@5->hot`.

    Raises:
        InputError: it is neither.
    """
    if match := _SWAP.fullmatch(text):
        return Change(text.strip(), match[1], int(match[2]), word=match[3])
    if match := _SET.fullmatch(text):
        return Change(text.strip(), match[1], int(match[2]), value=float(match[3]))
    raise InputError(
        f'"{text}" is no intervention: write large@5=0 (concept @ position = value) or '
        "large@5->hot (concept @ position -> word)."
    )


def differing(
    dictionaries: DictionarySet, clean: Forward, other: Forward, layer: int, position: int
) -> Clamp:
    """The features active in one of two runs and not in the other, with their values in `other`.

    `position` is a tensor index.
    """
    dictionary = in_the_stream(dictionaries[layer])
    mine = activations(dictionary, clean.resid[layer, position])
    theirs = activations(dictionary, other.resid[layer, position])
    features = ((mine != 0) != (theirs != 0)).nonzero().flatten()
    return Clamp(layer, position, features.cpu(), theirs[features].float().cpu())


def swapped_layers(n_layers: int, dictionaries: DictionarySet) -> list[int]:
    """The layers at which a word that is no concept is swapped."""
    return [layer for layer in dictionaries.layers if layer < _swapped_below(n_layers)]


def _swapped_below(n_layers: int) -> float:
    return max(1, SWAPPED_SHARE * n_layers)


class Resolver:
    """Turns changes of one prompt into clamps.

    Args:
        query: position whose prediction and target are read.
    """

    def __init__(self, run: PromptRun, query: int) -> None:
        self.run, self.clean, self.dictionaries = run, run.clean, run.dictionaries
        self.query = query

    def resolve(self, change: Change, layers: Sequence[int] | None = None) -> Resolved:
        """Which features are held at which values, where.

        Args:
            layers: of a swap, instead of those that the module's first lines name.

        Raises:
            InputError: position, concept or word cannot be used; what could be is named.
        """
        if not 1 <= change.position <= self.query:
            raise InputError(
                f'"{change.text}": position {change.position} is not among 1 to {self.query}, '
                "the positions up to the query."
            )
        at = self.run.index(change.position)
        if change.word is not None:
            return self._swap(change, at, layers)
        assert change.value is not None
        by_layer: dict[int, list[int]] = {}
        for name in self._members(change):
            layer, feature = parse_feature(name)
            d_sae = self.dictionaries[layer].d_sae
            if feature >= d_sae:
                raise InputError(
                    f"Feature {name} does not exist: the dictionary of layer {layer} has "
                    f"features 0 to {d_sae - 1}."
                )
            by_layer.setdefault(layer, []).append(feature)
        clamps = [
            Clamp(layer, at, torch.tensor(some), torch.full((len(some),), change.value))
            for layer, some in by_layer.items()
        ]
        return Resolved(change.text, change.position, clamps)

    def _members(self, change: Change) -> list[str]:
        """The features that stand for the name at its position."""
        if re.fullmatch(r"\d+/\d+", change.name):
            return [change.name]
        found = [span for span in self.run.spans if _same(span.name, change.name)]
        here = [span for span in found if span.position == change.position]
        if here:
            return list(here[0].features)
        catalogue = self.run.catalogue
        known = [concept.name for concept in catalogue.concepts] if catalogue else []
        if not any(_same(name, change.name) for name in known):
            raise InputError(
                f'"{change.text}": there is no concept "{change.name}" '
                f"({', '.join(known) or 'none are loaded'}); a feature such as 8/1234 can be set, "
                "and any word can be swapped."
            )
        places = ", ".join(str(span.position) for span in found)
        where = f"it is active at position {places}" if places else "nor anywhere in this prompt"
        raise InputError(
            f'"{change.text}": the concept "{change.name}" is not active at position '
            f"{change.position}; {where}."
        )

    def _swap(self, change: Change, at: int, given: Sequence[int] | None) -> Resolved:
        assert change.word is not None
        token = self.run.model.vocabulary[int(self.clean.ids[at])]
        span = next(
            (
                s
                for s in self.run.spans
                if s.position == change.position and _same(s.name, change.name)
            ),
            None,
        )
        if span is None and not _same(token, change.name):
            words = enumerate(self.run.tokens, 1)
            places = [str(i) for i, word in words if _same(word, change.name)]
            where = f'; "{change.name}" is at position {", ".join(places)}' if places else ""
            raise InputError(
                f'"{change.text}": position {change.position} is "{token.strip()}", and no concept '
                f'"{change.name}" is active there{where}.'
            )
        space = " " if token.startswith(" ") else ""
        new = self.run.model.single_token(space + change.word.strip())
        if new == int(self.clean.ids[at]):
            raise InputError(f'"{change.text}": position {change.position} is that word already.')
        ids = self.clean.ids.clone()
        ids[at] = new
        other = self.run.exact.run(ids)
        layers = swapped_layers(self.run.exact.n_layers, self.dictionaries)
        if given is not None:
            layers = list(given)
        elif span is not None:
            layers = [m for m in self.dictionaries.layers if span.first <= m <= span.last]
        if not layers:
            there = ", ".join(map(str, self.dictionaries.layers))
            raise InputError(
                f'"{change.text}": a word is swapped at layers below '
                f"{_swapped_below(self.run.exact.n_layers):g}, and there are dictionaries "
                f"for layers {there} only."
            )
        clamps = [differing(self.dictionaries, self.clean, other, m, at) for m in layers]
        if not any(len(clamp.features) for clamp in clamps):
            raise InputError(
                f'"{change.text}": the dictionaries tell the two words apart at none of the '
                f"layers {layers[0]} to {layers[-1]}."
            )
        return Resolved(change.text, change.position, clamps, other)


def _same(one: str, two: str) -> bool:
    return one.strip().lower() == two.strip().lower()
