"""What a concept is: a name and a rule that says at which positions it holds.  Torch-free.

Kinds:
    input   the current token is one of the named tokens
    class   the current token belongs to a class of tokens, such as "brackets"
    output  the model itself gives the named tokens together at least `probability` as the next
            token (which word really comes next is a poor target in free text)
    contrast a prompt is one of the positive prompts, not one of the negative ones
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import InputError
from saekit.features.names.lexicons import CLASSES

KINDS = ("input", "class", "output", "contrast")
# of each sign, half to choose features on, half to score them on: with ten against ten a feature
# that knows nothing reaches an AUROC of 0.9 once in 1,300 times (five against five: once in 63)
MIN_PROMPTS = 20


@dataclass(frozen=True)
class Definition:
    """One concept to look for.

    Attributes:
        name: what it is called.
        kind: one of `KINDS`.
        tokens: token texts, exact (" large" and "large" are two); those that are no single token
            of the model are left out.
        token_class: a name in `CLASSES`, instead of `tokens`, for kind "class".
        probability: for kind "output", what the tokens must get together.
        positive, negative: for kind "contrast", prompts of each sign, at least twenty.

    Raises:
        InputError: an impossible definition.
    """

    name: str
    kind: str
    tokens: tuple[str, ...] = ()
    token_class: str | None = None
    probability: float = 0.5
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        who = f'Concept "{self.name}"'
        if not self.name.strip():
            raise InputError("A concept needs a name: its table has an empty one.")
        if not all(self.tokens):
            raise InputError(f"{who} has an empty word or token: take it out.")
        if self.kind not in KINDS:
            raise InputError(f'{who}: kind is "{self.kind}"; choose from {", ".join(KINDS)}.')
        if self.kind == "contrast" or self.positive or self.negative:
            self._check_prompts()
            return
        if self.token_class is not None and self.token_class not in CLASSES:
            raise InputError(
                f'{who}: there is no class "{self.token_class}"; choose from {", ".join(CLASSES)}.'
            )
        if self.token_class is not None and (self.tokens or self.kind != "class"):
            raise InputError(f'{who}: a class stands alone, with kind "class" and without words.')
        if not self.tokens and self.token_class is None:
            raise InputError(f"{who} names no token: give words, tokens or a class.")
        if not 0 < self.probability <= 1:
            raise InputError(
                f"{who}: probability is {self.probability}; it must be above 0 and at most 1."
            )

    def _check_prompts(self) -> None:
        who = f'Concept "{self.name}"'
        if self.kind != "contrast" or self.tokens or self.token_class is not None:
            raise InputError(
                f'{who}: contrast prompts stand alone, with kind "contrast" and without words.'
            )
        for sign, prompts in (("positive", self.positive), ("negative", self.negative)):
            if not all(prompt.strip() for prompt in prompts):
                raise InputError(f"{who} has an empty {sign} prompt: take it out.")
            if len(set(prompts)) < MIN_PROMPTS:
                raise InputError(
                    f"{who} has {len(set(prompts))} different {sign} prompts; {MIN_PROMPTS} are "
                    "needed, half to choose features on and half to score them on."
                )
        if both := set(self.positive) & set(self.negative):
            raise InputError(f'{who}: "{min(both)}" is both a positive and a negative prompt.')


def forms(word: str) -> tuple[str, ...]:
    """How a word can stand as a token: `large`, ` large`, `Large`, ` Large`."""
    capital = word[:1].upper() + word[1:]
    return tuple(dict.fromkeys((word, f" {word}", capital, f" {capital}")))


BUILT_IN = (
    Definition("opposite", "input", ("opposite", " opposite")),
    Definition("large", "input", forms("large")),
    Definition("brackets", "class", token_class="brackets"),
    Definition("small", "output", ("small", " small")),
)


def resolve(definition: Definition, vocabulary: Sequence[str]) -> list[int]:
    """The token ids a definition names, ascending.

    Args:
        definition: the concept.
        vocabulary: text of every token id.

    Returns:
        Token ids; none for contrast prompts, which are about whole texts.

    Raises:
        InputError: no token of the vocabulary fits, or none of the forms of one of its words.
    """
    if definition.kind == "contrast":
        return []
    if definition.token_class is not None:
        belongs = CLASSES[definition.token_class]
        ids = [token for token, text in enumerate(vocabulary) if belongs(text)]
    else:
        wanted = set(definition.tokens)
        ids = [token for token, text in enumerate(vocabulary) if text in wanted]
        found = {vocabulary[token].strip().lower() for token in ids}
        for text in definition.tokens:
            if text.strip().lower() not in found:
                raise InputError(
                    f'Concept "{definition.name}": "{text.strip()}" is not a single token of this '
                    "model, with or without a leading space; choose another word."
                )
    if not ids:
        raise InputError(f'Concept "{definition.name}": no token of this model belongs to it.')
    return ids


_KEYS = {"kind", "words", "tokens", "class", "probability", "positive", "negative"}


def read_definitions(path: str | Path) -> tuple[Definition, ...]:
    """Definitions from a TOML file, one table per concept.

    Keys: `kind` (default "input", or "class" or "contrast" where such keys are there), `words`
    (each stands for its four `forms`), `tokens` (exact texts), `class` (a name in `CLASSES`),
    `probability`, `positive` and `negative` (lists of prompts).

        [colour]
        words = ["red", "blue"]

        [night]
        kind = "output"
        tokens = [" night"]

        [question]
        positive = ["Where is it?", ...]
        negative = ["It is here.", ...]

    Raises:
        InputError: the file cannot be read, is not TOML, is empty, or has an unknown key.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:  # tomllib's error and a wrong encoding
        raise InputError(f"{path} is not a TOML file ({error}).") from error
    if not tables:
        raise InputError(f"{path} defines no concept: add a table such as [colour].")
    return tuple(_definition(path, name, table) for name, table in tables.items())


def _definition(path: Path, name: str, table: object) -> Definition:
    if not isinstance(table, dict):
        raise InputError(f'{path}: "{name}" is not a table; write [{name}] on a line of its own.')
    if unknown := sorted(set(table) - _KEYS):
        raise InputError(
            f'{path}: concept "{name}" has the unknown key "{unknown[0]}"; '
            f"known are {', '.join(sorted(_KEYS))}."
        )
    lists: dict[str, list[str]] = {}
    for key in ("words", "tokens", "positive", "negative"):
        lists[key] = table.get(key, [])
        if not isinstance(lists[key], list) or not all(isinstance(t, str) for t in lists[key]):
            raise InputError(f'{path}: "{key}" of concept "{name}" must be a list of texts.')
    texts: list[str] = []
    for key in ("words", "tokens"):
        given = lists[key]
        if key == "words" and not all(text.strip() for text in given):
            raise InputError(f'{path}: concept "{name}" has an empty word: take it out.')
        for text in given:
            texts += forms(text.strip()) if key == "words" else [text]
    probability = table.get("probability", 0.5)
    if isinstance(probability, bool) or not isinstance(probability, int | float):
        raise InputError(f'{path}: "probability" of concept "{name}" must be a number.')
    token_class = table.get("class")
    prompts = bool(lists["positive"] or lists["negative"])
    usual = "contrast" if prompts else "class" if token_class is not None else "input"
    return Definition(
        name,
        str(table.get("kind", usual)),
        tuple(dict.fromkeys(texts)),
        None if token_class is None else str(token_class),
        float(probability),
        tuple(lists["positive"]),
        tuple(lists["negative"]),
    )
