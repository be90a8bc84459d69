"""What every command on a prompt begins with: matching artefacts, positions, concept spans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saekit.concepts.catalogue import Catalogue
from saekit.concepts.spans import check_catalogue, prompt_spans
from saekit.errors import InputError
from saekit.model.loading import LanguageModel, load_model
from saekit.sae.storage.dictionary_set import DictionarySet


def opened(
    model: str | LanguageModel,
    dictionaries: str | Path | DictionarySet,
    catalogue: Catalogue | None,
) -> tuple[LanguageModel, DictionarySet]:
    """The model and its dictionaries, loaded where they are names.

    Raises:
        MismatchError: dictionaries of another model, or a catalogue of another model or set.
    """
    model = load_model(model)
    if not isinstance(dictionaries, DictionarySet):
        dictionaries = DictionarySet.load(dictionaries, device=str(model.device))
    if catalogue is None:
        dictionaries.check_model(model)
    else:
        check_catalogue(model, dictionaries, catalogue)
    return model, dictionaries


def position_of_query(n: int, query: int | None) -> int:
    """The 1-based query of a prompt with n tokens, the last one by default.

    Raises:
        InputError: there is no such position.
    """
    query = n if query is None else query
    if not 1 <= query <= n:
        raise InputError(
            f"Query position {query} does not exist: the prompt has positions 1 to {n}."
        )
    return query


def spans_of(
    model: LanguageModel, dictionaries: DictionarySet, catalogue: Catalogue | None, prompt: str
) -> Sequence[Any]:
    """The concept spans on a prompt; none without a catalogue."""
    return [] if catalogue is None else prompt_spans(model, dictionaries, catalogue, prompt)
