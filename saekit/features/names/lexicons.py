"""Words as names see them, and the classes of tokens that names may speak of.  Torch-free.

A *word* is the text of a token without spaces around it, in lower case, so `large`, ` large` and
` Large` are one.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int, Integer

# straight, typographic and guillemet signs; not the apostrophe, which is mostly inside words
SIGNS = frozenset('()[]{}"“”„‟«»‹›')
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # stands for a part of a letter


def is_bracket(token: str) -> bool:
    """Whether a token is only quotation marks or brackets, possibly with other punctuation.

    True for `"`, ` (`, `".`, `")`; false for `.` and for anything with a letter or digit.
    """
    stripped = token.strip()
    return any(sign in SIGNS for sign in stripped) and not any(c.isalnum() for c in stripped)


def is_digits(token: str) -> bool:
    """Whether a token is only digits."""
    return token.strip().isdigit()


def is_punctuation(token: str) -> bool:
    """Whether a token is visible and has no letter or digit (brackets and quotes included)."""
    stripped = token.strip()
    return bool(stripped) and not any(c.isalnum() or c == _REPLACEMENT for c in token)


def is_blank(token: str) -> bool:
    """Whether a token is only spaces and line breaks."""
    return not token.strip()


def is_word_part(token: str) -> bool:
    """Whether a token continues a word: letters without a space in front, in lower case."""
    return token.isalpha() and token == token.lower()


def is_capitalised(token: str) -> bool:
    """Whether a token begins with a capital letter."""
    return token.strip()[:1].isupper()


def _of(words: str) -> Callable[[str], bool]:
    members = frozenset(words.split())
    return lambda token: token.strip().lower() in members


CLASSES: dict[str, Callable[[str], bool]] = {
    "brackets": is_bracket,
    "digits": is_digits,
    "punctuation": is_punctuation,
    "blanks": is_blank,
    "sentence ends": _of('. ! ? ." !" ?" .” !” ?” ...'),
    "months": _of(
        "january february march april may june july august september october november december"
    ),
    "days": _of("monday tuesday wednesday thursday friday saturday sunday"),
    "number words": _of(
        "one two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty "
        "thirty forty fifty sixty seventy eighty ninety hundred thousand million"
    ),
    "names": _of(
        "mary john anna tom james robert michael william david richard thomas charles george "
        "edward henry peter paul mark simon martin daniel jack sam alice emma sarah laura jane "
        "julia kate lucy susan helen ruth clara rose elizabeth margaret anne ellen grace carol "
        "linda karen lisa maria nina eva ben adam luke max oscar leo hugo felix victor frank fred "
        "harry joe bob bill jim mike dan steve chris alex kevin brian eric ryan andrew matthew"
    ),
    "pronouns": _of(
        "i you he she it we they me him her us them my your his its our their mine yours hers ours "
        "theirs myself yourself himself herself itself ourselves themselves"
    ),
    "articles": _of("a an the this that these those"),
    "prepositions": _of(
        "of in to for with on at from by about into over after under between through before "
        "behind beside near against across along around without within upon toward towards"
    ),
    "conjunctions": _of("and or but nor so yet because although though while if unless than as"),
    "forms of be": _of("be is are was were been being am"),
    "forms of have and do": _of("have has had having do does did done doing"),
    "modal verbs": _of("can could will would shall should may might must cannot"),
    "question words": _of("who whom whose what which when where why how"),
    "negations": _of("not no never none nothing nobody neither nor n't cannot without"),
    "colours": _of("red blue green yellow black white brown grey gray orange pink purple"),
    "family": _of(
        "mother father sister brother son daughter aunt uncle cousin grandmother grandfather "
        "parents child children wife husband"
    ),
    "capitalised": is_capitalised,
    "parts of words": is_word_part,
}


class Words:
    """The words of a vocabulary.

    Args:
        vocabulary: text of every token id.

    Attributes:
        texts: every word once.
        of_token: number of the word of each token id.
    """

    def __init__(self, vocabulary: Sequence[str]):
        folded = [text.strip().lower() or text for text in vocabulary]
        self.vocabulary, self.texts = vocabulary, list(dict.fromkeys(folded))
        self._number = {text: n for n, text in enumerate(self.texts)}
        self.of_token = np.array([self._number[text] for text in folded], np.int64)

    def number(self, word: str) -> int | None:
        """The number of a word; None if no token has it."""
        return self._number.get(word)

    def counts(self, token_counts: Integer[np.ndarray, " d_vocab"]) -> Int[np.ndarray, " word"]:
        """Occurrences of every word."""
        return np.bincount(self.of_token, token_counts, len(self.texts)).astype(np.int64)

    @cached_property
    def nameable(self) -> np.ndarray:
        """Which words can be shown to people: not blank, no parts of letters."""
        return np.array([bool(t.strip()) and _REPLACEMENT not in t for t in self.texts])

    @cached_property
    def classes(self) -> dict[str, Int[np.ndarray, " member"]]:
        """Token ids of every class that has any."""
        found = {name: self.members(name) for name in CLASSES}
        return {name: ids for name, ids in found.items() if len(ids)}

    def members(self, name: str) -> Int[np.ndarray, " member"]:
        """Token ids of a class."""
        belongs = CLASSES[name]
        return np.array([t for t, text in enumerate(self.vocabulary) if belongs(text)], np.int64)
