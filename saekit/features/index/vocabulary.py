"""From the text of a token to its id, without a tokenizer: the texts of all ids are enough."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from saekit.errors import InputError

_REPLACEMENT = "\ufffd"  # how bytes that are no whole character are decoded


class Vocabulary:
    """The token texts of a model.

    Attributes:
        texts: text of each id.
        model: id of the model, for messages.
    """

    def __init__(self, texts: Sequence[str], model: str):
        self.texts, self.model = list(texts), model

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for token, text in enumerate(self.texts):
            ids.setdefault(text, []).append(token)
        return ids

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.texts), default=0)

    def ids(self, token: str | int) -> list[int]:
        """The ids a user can mean: `"large"` is `"large"` and `" large"`, `" large"` only itself.

        Raises:
            InputError: no such token; for a text of several tokens its pieces are named.
        """
        if isinstance(token, int | np.integer):
            token = int(token)
            if not 0 <= token < len(self.texts):
                raise InputError(
                    f"Token {token} does not exist: {self.model} has tokens 0 to "
                    f"{len(self.texts) - 1}."
                )
            return [token]
        if not token:
            raise InputError("The token is empty: give its text, such as large.")
        forms = [token] if token[0].isspace() else [token, f" {token}"]
        found = [i for form in forms for i in self._ids.get(form, ())]
        if found:
            return found
        pieces = self.pieces(token)
        if pieces is None:
            raise InputError(f'No token of {self.model} spells "{token}".')
        listed = ", ".join(f'"{piece}"' for piece in pieces)
        raise InputError(
            f'"{token}" is not one token of {self.model} but several ({listed}); '
            "ask for one of them."
        )

    def pieces(self, text: str) -> list[str] | None:
        """A text as the fewest vocabulary entries; None if they cannot spell it.

        An explanation for people: a tokenizer may divide the text otherwise.
        """
        best: list[list[str] | None] = [[]]  # of each beginning of the text
        for end in range(1, len(text) + 1):
            shortest = None
            for start in range(max(0, end - self._longest), end):
                before, piece = best[start], text[start:end]
                if before is None or piece == _REPLACEMENT or piece not in self._ids:
                    continue
                if shortest is None or len(before) < len(shortest) - 1:
                    shortest = [*before, piece]
            best.append(shortest)
        return best[-1]
