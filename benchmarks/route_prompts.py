"""The prompts of the route benchmarks: opposites and two-name stories, in two halves.

Design choices (layers, features, thresholds) may look at the development half; figures are of the
reporting half.  The halves share no word pair and no name.
"""

import random
from dataclasses import dataclass
from zlib import crc32

from saekit.model.loading import LanguageModel
from saekit.text import relational

HALVES = ("development", "reporting")


@dataclass(frozen=True)
class RoutePrompt:
    """A prompt and the same with another word in one place.

    Attributes:
        position: of the word, 1-based without BOS; it occurs there only, and the two differ there
            only.
        answers, other_answers: token ids of all right continuations of each.
        group: what prompts of one bootstrap group share: the word pair, or the name.
    """

    text: str
    other_text: str
    position: int
    word: str
    other_word: str
    answers: frozenset[int]
    other_answers: frozenset[int]
    group: str


def half_of(*words: str) -> str:
    """Which half a word pair (or a name) belongs to."""
    return HALVES[crc32("|".join(sorted(words)).encode()) % 2]


def _differing_position(model: LanguageModel, text: str, other: str) -> int | None:
    """The one 1-based position at which two texts differ, None if it is not one."""
    one, two = model.tokens(text), model.tokens(other)
    places = [i for i, (a, b) in enumerate(zip(one, two, strict=False), 1) if a != b]
    if len(one) != len(two) or len(places) != 1 or one.count(one[places[0] - 1]) != 1:
        return None
    return places[0]


def _first_tokens(model: LanguageModel, answers: set[str]) -> frozenset[int]:
    return frozenset(model.tokens(answer)[0] for answer in answers)


def opposite_prompts(model: LanguageModel, half: str, n: int, seed: int = 0) -> list[RoutePrompt]:
    """Opposites of one half, each word first in the plainest form, then in other forms."""
    rng = random.Random(f"{half}{seed}")
    pairs = [pair for pair in relational.opposite_pairs() if half_of(*pair) == half]
    words = [(word, pair) for pair in pairs for word in pair]
    opposites = relational.opposites()
    forms = [form for form in relational.FORMS if form != relational.SEED_FORM]
    found: list[RoutePrompt] = []
    for turn in range(100):
        for word, pair in words:
            form = relational.SEED_FORM if turn == 0 else rng.choice(forms)
            other, _ = rng.choice([row for row in words if row[1] != pair])
            draw = rng.randrange(1 << 30)
            one, two = (
                relational.relation_sentence(
                    "opposite", w, min(opposites[w]), form, random.Random(draw)
                )
                for w in (word, other)
            )
            position = _differing_position(model, one.prompt, two.prompt)
            if position is None:
                continue
            space = " " if one.answer.startswith(" ") else ""
            answers = (
                _first_tokens(model, {space + answer for answer in opposites[w]})
                for w in (word, other)
            )
            found.append(
                RoutePrompt(one.prompt, two.prompt, position, word, other, *answers, "|".join(pair))
            )
            if len(found) == n:
                return found
    return found


def story_prompts(model: LanguageModel, half: str, n: int, seed: int = 0) -> list[RoutePrompt]:
    """Stories of two names that never meet in training text; the taker becomes a third name."""
    rng = random.Random(f"{half}{seed}")
    names = [
        name
        for name in relational.first_names()
        if half_of(name) == half and len(model.tokens(f" {name}")) == 1
    ]
    found: list[RoutePrompt] = []
    while len(found) < n:
        giver, taker, other = rng.sample(names, 3)
        if not relational.held_out_names(giver, taker):
            continue
        draw, taker_is_first = rng.randrange(1 << 30), rng.random() < 0.5
        texts = []
        for name in (taker, other):
            first, second = (name, giver) if taker_is_first else (giver, name)
            story = relational.story_sentence(
                first, second, not taker_is_first, random.Random(draw)
            )
            texts.append(story.prompt)
        position = _differing_position(model, *texts)
        if position is not None:
            answers = (_first_tokens(model, {f" {name}"}) for name in (taker, other))
            found.append(RoutePrompt(*texts, position, taker, other, *answers, taker))
    return found
