"""Names by somebody else: a Python function, or a chat model behind an OpenAI-compatible endpoint.

A labeller gets a `FeatureRecord` and returns a `Label`.  A label of kind input, class, output or
context is a predicate on tokens and is scored exactly, like the names by rules.  A label of kind
"text" is free: the same drawn passages and marks are shown to the labeller's own `judge`, as in
delphi, and its yes and no give detection and fuzzing; there are no scores over all positions then.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

from saekit.errors import InputError
from saekit.features.records import Example, FeatureRecord

_TIMEOUT = 120.0  # seconds for one answer
_PER_QUESTION = 10  # passages judged in one question
_SHOWN = 12  # examples shown for naming
_NAME = (
    "You name features of a language model. In each excerpt the tokens on which the feature is "
    "active are between << and >>. Answer with a name of at most eight words for what these tokens "
    "have in common, and nothing else."
)
_JUDGE = {
    "detection": "A feature of a language model is described as: {label}\nFor each numbered "
    "excerpt say whether the feature is active somewhere in it.",
    "fuzzing": "A feature of a language model is described as: {label}\nFor each numbered excerpt "
    "say whether the tokens between << and >> are the ones it is active on.",
}
_LIST = re.compile(r"\[[^\[\]]*\]")
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)  # what a model says to itself
_FORMAT = "\nAnswer with a JSON list of 0 (no) and 1 (yes), one per excerpt, such as [0, 1, 1]."


@dataclass(frozen=True)
class Label:
    """A name given by a labeller.

    Attributes:
        text: for kind "input" and "output" one word, for "class" a name in
            `lexicons.CLASSES`, for "context" words with ", " between; else free.
        kind: "input", "class", "output", "context", or "text".
    """

    text: str
    kind: str = "text"


class Labeller(Protocol):
    """Gives labels.  A plain function `(FeatureRecord) -> Label | str | None` is enough for kinds
    that are predicates; free text needs a `judge` (see `ChatLabeller`) to be scored."""

    def __call__(self, record: FeatureRecord) -> Label | str | None:
        """The label of a feature; a plain text is free text, None leaves it without a name."""
        ...


def marked_text(example: Example) -> str:
    """An excerpt with its active tokens between << and >>."""
    pairs = zip(example.tokens, example.activations, strict=True)
    return "".join(f"<<{token}>>" if value > 0 else token for token, value in pairs)


def _votes(answer: str, n: int) -> list[bool] | None:
    """The last list of n times 0 or 1 in an answer; None if there is none."""
    for text in reversed(_LIST.findall(answer)):
        try:
            votes = json.loads(text)
        except ValueError:
            continue
        if len(votes) == n and all(vote in (0, 1) for vote in votes):
            return [bool(vote) for vote in votes]
    return None


class ChatLabeller:
    """A chat model behind an OpenAI-compatible endpoint (`POST URL/chat/completions`).

    Args:
        url: such as `http://127.0.0.1:8000/v1`.
        model: its name there.
        key: sent as a bearer token, if given.

    Raises:
        InputError: not an http address.
    """

    def __init__(self, url: str, model: str, key: str | None = None):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise InputError(f'"{url}" is not an http address such as http://127.0.0.1:8000/v1.')
        self.url, self.model, self._key = url.rstrip("/"), model, key

    def __call__(self, record: FeatureRecord) -> Label | None:
        """A free text from the feature's examples; None for a feature without any."""
        examples = [*record.examples, *record.samples][:_SHOWN]
        if not examples:
            return None
        text = self._ask(_NAME, "\n".join(marked_text(example) for example in examples))
        return Label(" ".join(text.split())[:200]) if text else None

    def judge(self, label: str, excerpts: Sequence[str], task: str) -> list[bool]:
        """Whether the label fits each excerpt.

        Args:
            label: free text.
            excerpts: passages; for "fuzzing" with << >> around the marked tokens.
            task: "detection" or "fuzzing".

        Raises:
            InputError: the endpoint cannot be reached or does not answer as asked, asked twice.
        """
        answers: list[bool] = []
        for start in range(0, len(excerpts), _PER_QUESTION):
            part = excerpts[start : start + _PER_QUESTION]
            lines = "\n".join(f"{number}. {text}" for number, text in enumerate(part, 1))
            asked = _JUDGE[task].format(label=label) + _FORMAT
            votes = _votes(answer := self._ask(asked, lines), n := len(part))
            if votes is None:  # one slip in hundreds of answers is no reason to lose them all
                reminder = f"\nThe list must have {n} entries and nothing may follow it."
                votes = _votes(answer := self._ask(asked + reminder, lines), n)
            if votes is None:
                raise self._no_votes(answer, n)
            answers += votes
        return answers

    def _no_votes(self, answer: str, n: int) -> InputError:
        return InputError(
            f"{self.model} at {self.url} did not answer with a list of {n} times 0 or 1 but "
            f'with "{answer[:80]}": use a model that follows instructions.'
        )

    def _ask(self, system: str, user: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = {"model": self.model, "messages": messages, "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                document: Any = json.load(response)
            answer = document["choices"][0]["message"]["content"]
            if not isinstance(answer, str):  # refused, or a call of a tool: null
                raise TypeError(f"the content is {json.dumps(answer)[:80]}")
            return _THOUGHTS.sub("", answer).strip()
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise InputError(f"{self.url} cannot be asked ({reason}): is the server up?") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"{self.url} does not answer like an OpenAI-compatible chat endpoint ({error!r})."
            ) from error
