"""A prompt, run once: this prompt on this model with these dictionaries.

Target choice, attribution, ablation, interventions and graph ask a `PromptRun`.  It holds the clean
forward pass with every value, the dictionaries with what they call their features, and the
concepts with their spans on the prompt.

Positions are counted in two ways.  People count from 1 and leave BOS out; a tensor index counts
BOS, where the model is read with it.  `index` and `positions` turn one into the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from saekit.concepts.catalogue import Catalogue
from saekit.concepts.spans import check_catalogue, prompt_spans
from saekit.errors import InputError
from saekit.features.fingerprint import dictionary_fingerprint
from saekit.features.names.name_file import GOOD, NAMES, FeatureNames
from saekit.model.exact import ExactModel, Forward
from saekit.model.loading import LanguageModel, load_model
from saekit.sae.storage.dictionary_set import DictionarySet

FAIR = 0.75  # half way from chance to perfect: a name from here to GOOD is shown with a "?"

Namer = Callable[[int, int], str | None]
"""(layer, feature) -> what people call it, or None."""

# What was read from names.h5, with the time of the file: a set names many prompts.
_NAMES: WeakKeyDictionary[DictionarySet, tuple[int, Namer]] = WeakKeyDictionary()


@dataclass(frozen=True)
class PromptRun:
    """See the module's docstring.

    Attributes:
        exact: the model's weights in the precision of the run.
        clean: every value of the forward pass.
        spans: concept spans on the prompt; a concept is present at the layers of its span.
        called: what people call a feature.
        positions: the position at every tensor index; 0 is BOS.
        tokens: the text of every position's token.
    """

    prompt: str
    model: LanguageModel
    exact: ExactModel
    clean: Forward
    dictionaries: DictionarySet
    catalogue: Catalogue | None
    spans: Sequence[Any]
    called: Namer
    positions: list[int]
    tokens: list[str]

    @classmethod
    def of(
        cls,
        model: str | LanguageModel,
        dictionaries: str | Path | DictionarySet | None,
        prompt: str,
        catalogue: Catalogue | None = None,
        spans: Sequence[Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "PromptRun":
        """Run a prompt; arguments as in `saekit.trace`.

        Raises:
            InputError: the prompt is empty or too long.
            MismatchError: dictionaries of another model, or a catalogue of another model or set.
            FormatError: the file of names is broken.
        """
        model = load_model(model)
        ids = model.prompt(prompt)
        first = int(model.prepend_bos)
        tokens = model.token_strings(ids[first:].tolist())
        exact = ExactModel(model, dtype)
        clean = exact.run(ids)
        if dictionaries is None:
            dictionaries = DictionarySet.none(model)
        if not isinstance(dictionaries, DictionarySet):
            dictionaries = DictionarySet.load(dictionaries, device=str(model.device))
        if catalogue is None:
            dictionaries.check_model(model)
        elif spans is None:
            spans = prompt_spans(model, dictionaries, catalogue, prompt, clean.resid)
        else:
            check_catalogue(model, dictionaries, catalogue)
        return cls(
            prompt=prompt,
            model=model,
            exact=exact,
            clean=clean,
            dictionaries=dictionaries,
            catalogue=catalogue,
            spans=spans or [],
            called=namer(catalogue, names_of(dictionaries)),
            positions=list(range(1 - first, len(tokens) + 1)),
            tokens=tokens,
        )

    @property
    def first(self) -> int:
        """Tensor index of position 1."""
        return int(self.model.prepend_bos)

    @property
    def n(self) -> int:
        """How many positions there are."""
        return len(self.tokens)

    def index(self, position: int) -> int:
        """The tensor index of a position."""
        return position - 1 + self.first

    def query(self, query: int | None) -> int:
        """The position that is asked about, the last one by default.

        Raises:
            InputError: there is no such position.
        """
        query = self.n if query is None else query
        if not 1 <= query <= self.n:
            raise InputError(
                f"Query position {query} does not exist: the prompt has positions 1 to {self.n}."
            )
        return query

    def arriving(self, query: int | None, key: int | None = None) -> int:
        """`query`, at which something can arrive: from `key`, where one is given.

        Raises:
            InputError: there is no such position, or the key is not before the query.
        """
        query = self.query(query)
        if key is not None and not 1 <= key <= self.n:
            raise InputError(
                f"Key position {key} does not exist: the prompt has positions 1 to {self.n}."
            )
        if query == 1:
            raise InputError(
                "Nothing can arrive at position 1: choose a later query or longer prompt."
            )
        if key is not None and key >= query:
            raise InputError(
                f"Key position {key} is not before query position {query}: "
                "attention reads earlier positions."
            )
        return query

    def top_token(self, index: int) -> int:
        """The id of the most probable next token at a tensor index."""
        return int(self.clean.logits[index].argmax())


def names_of(dictionaries: DictionarySet) -> Namer | None:
    """The names beside the dictionaries (features/names/), if they were made.

    Raises:
        FormatError: the file of names is broken.
        MismatchError: it names the features of other dictionaries.
    """
    path = dictionaries.path / NAMES
    if not path.is_file():
        return None
    time = path.stat().st_mtime_ns
    read, given = _NAMES.get(dictionaries, (0, None))
    if given is not None and read == time:
        return given
    names = FeatureNames.read(path)
    found = {
        layer: dictionary_fingerprint(dictionaries[layer]) if layer in dictionaries.layers else None
        for layer in names.layers
    }
    names.check_dictionaries(found, dictionaries.path)
    given = good_names(names)
    _NAMES[dictionaries] = time, given
    return given


def good_names(names: FeatureNames) -> Namer:
    """The names that held on other text.

    A name counts by its balanced accuracy on the part of the text on which names are chosen: from
    `GOOD` on it is given as it is, from `FAIR` on with " ?" behind it.  Most features have none
    that is good enough; a number is better than a wrong word.
    """
    scores, numbers = names.column("chosen_detection"), names.numbers

    def name(layer: int, feature: int) -> str | None:
        if layer not in names.layers:
            return None
        at = names.layers.index(layer), feature
        text = names.texts[int(numbers[at])]
        if not text or not scores[at] >= FAIR:  # NaN, not measured, is not enough either
            return None
        return text if scores[at] >= GOOD else f"{text} ?"

    return name


def namer(catalogue: Catalogue | None, given: Namer | None) -> Namer:
    """What to call a feature: its concept, else its name, else nothing."""

    def name(layer: int, feature: int) -> str | None:
        concept = None if catalogue is None else catalogue.name_of(layer, feature)
        if concept is not None or given is None:
            return concept
        return given(layer, feature)

    return name
