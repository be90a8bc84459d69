"""A relation in the tokens of one model: which pairs stay, and what a constant head would score.

Each word gets one leading space and must be exactly one token, both ends of a pair; pairs of token
ids are taken as they are.  The rule and the smallest number of pairs are those of MAPS (Elhelo and
Geva 2024, arXiv 2412.11965).
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedModel

from saekit.errors import InputError, ModelError
from saekit.heads.relations import Relation
from saekit.model.loading import LanguageModel, load_model

MIN_PAIRS = 30  # below it one pair moves a score by more than 0.03


@dataclass(frozen=True)
class TokenPairs:
    """The pairs of a relation that a model's tokenizer leaves.

    Attributes:
        words: as the relation gives them (for token ids: the tokens' text).
        source, target: their token ids.
        listed: pairs before filtering.
    """

    relation: Relation
    words: tuple[tuple[str, str], ...]
    source: Int[np.ndarray, " pair"]
    target: Int[np.ndarray, " pair"]
    listed: int

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def distinct_targets(self) -> int:
        return len(set(self.target.tolist()))

    def constant_score(self, k: int) -> float:
        """Score of a head that writes the k most frequent targets whatever it reads."""
        counts = Counter(self.target.tolist()).most_common(k)
        return sum(count for _, count in counts) / len(self)


def open_for_pairs(model: object, relation: Relation) -> LanguageModel:
    """`load_model`, also for a model without a tokenizer where the pairs are token ids.

    Raises:
        ModelError: no model that saekit reads (the type or the name is in the message).
    """
    if not isinstance(model, LanguageModel | PreTrainedModel):
        if not isinstance(model, str) and not hasattr(model, "__fspath__"):
            raise ModelError(
                f"A {type(model).__name__} is no model that saekit reads: give an id, a folder "
                "or a loaded language model of transformers."
            )
        return load_model(str(model))
    if isinstance(model, PreTrainedModel) and isinstance(relation.pairs[0][0], int):
        try:
            if model.config._name_or_path:
                return load_model(model)
        except ModelError:  # its tokenizer is not where it came from, and is not needed
            pass
        return LanguageModel(model.config._name_or_path or "a model in memory", model.eval(), None)
    return load_model(model)


def token_pairs(model: LanguageModel, relation: Relation, min_pairs: int = MIN_PAIRS) -> TokenPairs:
    """The pairs whose two ends are one token of the model each.

    Raises:
        InputError: fewer than `min_pairs` stay (both counts are named), or an id is no token.
    """
    listed = len(relation.pairs)
    if isinstance(relation.pairs[0][0], int):
        ids = np.array(relation.pairs, dtype=np.int64)
        outside = ids[(ids < 0) | (ids >= model.d_vocab)]
        if outside.size:
            raise InputError(
                f"{outside[0]} is no token id of {model.id}: ids are 0 to {model.d_vocab - 1}."
            )
        words = [(_text(model, source), _text(model, target)) for source, target in ids.tolist()]
    else:
        flat = [f" {word}" for pair in relation.pairs for word in pair]
        encoded = model.encode_batch(flat)
        kept = [i for i in range(listed) if len(encoded[2 * i]) == len(encoded[2 * i + 1]) == 1]
        ids = np.array([(encoded[2 * i][0], encoded[2 * i + 1][0]) for i in kept], dtype=np.int64)
        ids = ids.reshape(-1, 2)
        words = [(str(relation.pairs[i][0]), str(relation.pairs[i][1])) for i in kept]
    if len(words) < min_pairs:
        raise InputError(
            f'{len(words)} of the {listed} pairs of "{relation.name}" are single tokens of '
            f"{model.id} (with a leading space); a score needs at least {min_pairs}: add pairs."
        )
    return TokenPairs(relation, tuple(words), ids[:, 0], ids[:, 1], listed)


def _text(model: LanguageModel, token: int) -> str:
    return model.tokenizer.decode([token]) if model.tokenizer is not None else f"#{token}"
