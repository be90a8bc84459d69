"""Relational English: sentences whose next word is known, made by a seeded generator.

From word tables (`saekit/data`) to documents.  Opposites, copies, synonyms and other relations
are put into the *same sentence forms* and on the *same words*, so that only the relation word
("opposite of", "word", "synonym of") decides the answer; two-name stories, nested brackets and
plain scenes complete the mix.  Words follow a flattened Zipf law in the order of the table.

Some combinations never occur in training text, so that generalisation can be measured: a pair of
opposites in certain forms (`held_out_form`), and certain pairs of names (`held_out_names`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from zlib import crc32

from saekit.errors import InputError

KINDS = ("opposite", "copy", "synonym", "other", "names", "brackets", "scenes")
KIND_WEIGHTS = (0.16, 0.16, 0.16, 0.16, 0.18, 0.10, 0.08)
N_PAIRS = 150
ZIPF_OFFSET = 25  # weight of rank r is 1 / (r + 25): the first pair is 6.7 times the last
SEED_FORM = "quote"  # The opposite of "large" is "

# form -> (up to the answer, after the answer); {r} relation, {x} word, {f} filler, {n} name
FORMS = {
    "quote": ('The {r} "{x}" is "', '".'),
    "plain": ("The {r} {x} is ", "."),
    "question": ('What is the {r} "{x}"? It is "', '".'),
    "filler": ('The {r} "{x}", {f}, is "', '".'),
    "school": ('At school we learned that the {r} "{x}" is "', '".'),
    "board": ('The {r} "{x}" {f} was "', '".'),
    "said": ('"Tell me the {r} {x}," said {n}. "It is ', '."'),
    "wrote": ('For the {r} "{x}", {n} wrote "', '" in the book.'),
    "round": ("The {r} ({x}) is (", ")."),
    "square": ("Here is the {r} [{x}]: [", "]."),
    "entry": ("{r} {x}: ", ";"),
    "found": ('They looked for the {r} "{x}" and {f} they found "', '".'),
}
PHRASES = {
    "opposite": ("opposite of", "opposite of", "opposite of", "antonym of"),
    "copy": ("word", "word", "word", "same word as"),
    "synonym": ("synonym of", "synonym of", "word like"),
    "comparative": ("comparative of",),
    "plural": ("plural of",),
    "past": ("past of", "past tense of"),
    "letter": ("first letter of",),
}
FILLERS = (
    "of course", "as you know", "I think", "after all", "in my notebook",
    "as every child can tell you", "on page seven", "at the end of the list",
    "if I remember it well", "in the old brown dictionary", "in the game we played last night",
    "that the teacher wrote on the board", "in this lesson", "for once", "in our language",
    "that nobody in the class could guess at first",
)  # fmt: skip
PLACES = "store park school garden station market kitchen library church beach farm office".split()
THINGS = "drink book letter key ring ball cup hat flower coat clock basket ticket lamp".split()
STORIES = (
    "When {a} and {b} went to the {p}, {s} gave a {t} to",
    "Then {a} and {b} were working at the {p}, and {s} handed the {t} to",
    "After {a} and {b} met at the {p}, {s} decided to give the {t} to",
    "One day {a} and {b} had a long talk in the {p}. Afterwards {s} said goodbye to",
    "While {a} and {b} were waiting near the {p}, {s} showed a {t} to",
    "There was a {t} for {a} and {b} at the {p}. Later {s} brought it to",
    "In the evening {a} sat beside {b} in the {p}, and {s} passed the {t} to",
    "Once {a} and {b} found a {t} by the {p}, {s} told a story to",
)
STORY_ENDS = (".", " with a smile.", " and went home.", ", who was glad.")
BRACKETS = {"(": ")", "[": "]", "{": "}", '"': '"'}
NOUNS = (
    "house cat river book door town garden horse table ship bird road letter bridge clock tree "
    "child king boat hill song window box coat lamp star"
).split()
BRACKET_STARTS = ("We read about", "Nobody had seen", "I will draw", "There it was:", "Look at")
BRACKET_ENDS = (" by the river.", " today.", " once more.", " in the picture.")
SCENES = (
    "The {x} {n} stood near the {y} {m}.",
    "Their {n} was {x}, but the {m} was {y}.",
    "We saw the {x} {n} and the {y} {m} on the way.",
    "Nobody wanted the {n}, for it was {x}.",
    "How {x} the {n} looked beside the {m}!",
)


@dataclass(frozen=True)
class Sentence:
    """One generated sentence: `text == prompt + answer + end`.

    `prompt` ends where the answer's first token begins; an answer in running text therefore
    carries its leading space.
    """

    kind: str
    form: str
    words: tuple[str, ...]
    prompt: str
    answer: str
    end: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer + self.end


def _rows(name: str) -> list[list[str]]:
    text = files("saekit").joinpath("data", name).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if line]


@cache
def opposite_pairs() -> tuple[tuple[str, str], ...]:
    """The first 150 training pairs of the table, most frequent first."""
    rows = [row for row in _rows("antonyms.tsv")[1:] if row[3] == "train"]
    return tuple((row[0], row[1]) for row in rows[:N_PAIRS])


@cache
def opposites() -> dict[str, frozenset[str]]:
    """Every listed opposite of a word, from the whole table, in both directions."""
    table: dict[str, set[str]] = {}
    for word, opposite, *_ in _rows("antonyms.tsv")[1:]:
        table.setdefault(word, set()).add(opposite)
        table.setdefault(opposite, set()).add(word)
    return {word: frozenset(answers) for word, answers in table.items()}


@cache
def first_names() -> tuple[str, ...]:
    """Common first names, made for this project."""
    return tuple(row[0] for row in _rows("first_names.txt"))


@cache
def relation_table(relation: str) -> dict[str, str]:
    """word -> answer for synonym, comparative, plural or past."""
    return {word: answer for name, word, answer in _rows("relations.tsv")[1:] if name == relation}


@cache
def relation_words() -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The 300 words that all relations share and their cumulative Zipf weights."""
    words: list[str] = []
    cumulative: list[float] = []
    total = 0.0
    for rank, pair in enumerate(opposite_pairs()):
        for word in pair:
            total += 1 / (rank + ZIPF_OFFSET)
            words.append(word)
            cumulative.append(total)
    return tuple(words), tuple(cumulative)


def held_out_form(word: str, opposite: str, form: str) -> bool:
    """Whether this pair of opposites is never put into this form in training text (1 in 8)."""
    pair = sorted((word, opposite))
    if form == SEED_FORM and pair == ["large", "small"]:
        return False
    return crc32(f"{pair[0]}|{pair[1]}|{form}".encode()) % 8 == 0


def held_out_names(first: str, second: str) -> bool:
    """Whether these two names never meet in training text (1 in 10)."""
    one, two = sorted((first, second))
    return crc32(f"{one}|{two}".encode()) % 10 == 0


def _unknown_kind(kind: str) -> InputError:
    return InputError(f'There is no kind of sentence "{kind}"; choose from {", ".join(KINDS)}.')


def relation_sentence(
    relation: str, word: str, answer: str, form: str, rng: random.Random | None = None
) -> Sentence:
    """One relation in one form; without `rng` the plainest wording is taken."""
    phrases = PHRASES[relation]
    before, end = FORMS[form]
    prompt = before.format(
        r=rng.choice(phrases) if rng else phrases[0],
        x=word,
        f=rng.choice(FILLERS) if rng else FILLERS[0],
        n=rng.choice(first_names()) if rng else first_names()[0],
    )
    if prompt.endswith(" "):  # the space belongs to the answer's first token
        prompt, answer = prompt[:-1], " " + answer
    return Sentence(relation, form, (word,), prompt, answer, end)


def story_sentence(
    first: str, second: str, giver_is_first: bool, rng: random.Random, form: int | None = None
) -> Sentence:
    """A story of two names in which one gives something to the other."""
    form = rng.randrange(len(STORIES)) if form is None else form
    giver, taker = (first, second) if giver_is_first else (second, first)
    prompt = STORIES[form].format(
        a=first, b=second, s=giver, p=rng.choice(PLACES), t=rng.choice(THINGS)
    )
    names = (first, second, giver)
    return Sentence("names", f"story{form}", names, prompt, f" {taker}", rng.choice(STORY_ENDS))


def bracket_sentence(rng: random.Random) -> Sentence:
    """Nested brackets and quotes; the answer is the outermost closing one."""
    if rng.random() < 0.3:  # mirror: every closing sign is determined by the opening ones
        openers = [rng.choice("([{") for _ in range(rng.randint(1, 4))]
        closers = [BRACKETS[sign] for sign in reversed(openers)]
        prompt = " ".join(["Open", *openers, "and close", *closers[:-1]])
        return Sentence("brackets", "mirror", tuple(openers), prompt, f" {closers[-1]}", ".")

    def nest(depth: int, allowed: str) -> str:
        opener = rng.choice(allowed)
        inner = f"the {rng.choices(words, cum_weights=weights)[0]}"
        if depth > 1:
            inner += f" {nest(depth - 1, allowed.replace(opener, ''))}"
        return f"{opener}{inner} {rng.choice(NOUNS)}{BRACKETS[opener]}"

    words, weights = relation_words()
    nested = nest(rng.choice((1, 1, 2, 2, 3)), '([{"')
    prompt = f"{rng.choice(BRACKET_STARTS)} {nested[:-1]}"
    end = rng.choice(BRACKET_ENDS)
    return Sentence("brackets", "nested", (nested[0],), prompt, nested[-1], end)


def scene_sentence(rng: random.Random) -> Sentence:
    """An ordinary sentence that uses the words without naming a relation."""
    words, weights = relation_words()
    x, y = rng.choices(words, cum_weights=weights, k=2)
    noun, other = rng.sample(NOUNS, 2)
    text = rng.choice(SCENES).format(x=x, y=y, n=noun, m=other)
    return Sentence("scenes", "scene", (x, y), "", text, "")


def sentence(kind: str, rng: random.Random, held_out: bool = False) -> Sentence:
    """One random sentence of a kind.

    Args:
        kind: one of `KINDS`.
        rng: source of randomness; the same state gives the same sentence.
        held_out: False leaves the held-out combinations out (training text); True draws *only*
            held-out combinations for "opposite" and "names".
    """
    if kind == "brackets":
        return bracket_sentence(rng)
    if kind == "scenes":
        return scene_sentence(rng)
    if kind == "names":
        while True:
            first, second = rng.sample(first_names(), 2)
            if held_out_names(first, second) == held_out:
                return story_sentence(first, second, rng.random() < 0.5, rng)
    words, weights = relation_words()
    while True:
        word = rng.choices(words, cum_weights=weights)[0]
        form = rng.choice(tuple(FORMS))
        relation, answer = kind, word
        if kind == "opposite":
            index = words.index(word)
            answer = words[index ^ 1]  # pairs are neighbours in the list
            if held_out_form(word, answer, form) != held_out:
                continue
        elif kind == "synonym":
            answer = relation_table("synonym").get(word)
        elif kind == "other":
            relation = rng.choice(("comparative", "letter", "plural", "past"))
            if relation in ("plural", "past"):
                word, answer = rng.choice(tuple(relation_table(relation).items()))
            else:
                answer = word[0] if relation == "letter" else relation_table(relation).get(word)
        elif kind != "copy":
            raise _unknown_kind(kind)
        if answer is not None:
            return relation_sentence(relation, word, answer, form, rng)


def documents(
    kinds: Sequence[str] = KINDS, seed: int = 0, sentences: tuple[int, int] = (1, 6)
) -> Iterator[str]:
    """Endless stream of documents, each of a few sentences of the given kinds.

    The same arguments give the same stream.  Held-out combinations never occur.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise _unknown_kind(kind)
    rng = random.Random(f"{seed}")
    weights = [KIND_WEIGHTS[KINDS.index(kind)] for kind in kinds]
    while True:
        chosen = rng.choices(kinds, weights=weights, k=rng.randint(*sentences))
        separator = rng.choice((" ", " ", "\n"))
        yield separator.join(sentence(kind, rng).text for kind in chosen)
