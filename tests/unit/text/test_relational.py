"""The generator's promises: determinism, held-out combinations, the relation word decides."""

import random
import re
from itertools import islice

import pytest

from saekit.errors import InputError
from saekit.text import relational
from saekit.text.relational import FORMS, KINDS, PHRASES, STORIES


def draw(kind, n=300, seed=0, held_out=False):
    rng = random.Random(seed)
    return [relational.sentence(kind, rng, held_out) for _ in range(n)]


def test_same_seed_same_stream():
    first, again = (list(islice(relational.documents(seed=3), 200)) for _ in range(2))
    assert first == again
    assert first != list(islice(relational.documents(seed=4), 200))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(kind):
    assert all(islice(relational.documents([kind], seed=1), 50))
    made = {s.kind for s in draw(kind)}
    expected = {"comparative", "letter", "plural", "past"} if kind == "other" else {kind}
    assert made == expected


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_prompt_answer_end(kind):
    for s in draw(kind):
        assert s.text == s.prompt + s.answer + s.end
        assert s.answer.strip()
        assert not s.prompt.endswith(" ")  # the space belongs to the answer's first token


def test_unknown_kind():
    with pytest.raises(InputError, match='no kind of sentence "riddle"; choose from opposite'):
        next(relational.documents(["riddle"]))
    with pytest.raises(InputError, match="riddle"):
        relational.sentence("riddle", random.Random(0))


def test_seed_prompt():
    made = relational.relation_sentence("opposite", "large", "small", relational.SEED_FORM)
    assert (made.prompt, made.answer) == ('The opposite of "large" is "', "small")
    assert not relational.held_out_form("large", "small", relational.SEED_FORM)
    assert "small" in relational.opposites()["large"] and "large" in relational.opposites()["small"]


@pytest.mark.parametrize("form", FORMS)
def test_only_the_relation_word_differs_between_relations(form):
    opposite = relational.relation_sentence("opposite", "large", "small", form)
    for relation in ("copy", "synonym"):
        other = relational.relation_sentence(relation, "large", "?", form)
        as_opposite = other.prompt.replace(PHRASES[relation][0], PHRASES["opposite"][0])
        assert as_opposite == opposite.prompt
        assert other.end == opposite.end


def test_relations_share_words_and_forms():
    words, _ = relational.relation_words()
    assert len(words) == 300
    for kind in ("opposite", "copy", "synonym"):
        made = draw(kind, 2000)
        assert {s.form for s in made} == set(FORMS)
        assert {s.words[0] for s in made} <= set(words)
    counted = [[s.words[0] for s in draw(kind, 4000)] for kind in ("opposite", "copy")]
    frequent = [sum(word in words[:20] for word in made) / len(made) for made in counted]
    assert frequent[0] == pytest.approx(frequent[1], abs=0.05)  # equally frequent words


def test_answers_are_right():
    for s in draw("opposite"):
        assert s.answer.strip() in relational.opposites()[s.words[0]]
    assert all(s.answer.strip() == s.words[0] for s in draw("copy"))
    for s in draw("names"):
        first, second, giver = s.words
        assert s.answer.strip() == (second if giver == first else first)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "scenes"])
def test_brackets_and_quotes_are_balanced(kind):
    closes = {")": "(", "]": "[", "}": "{"}
    for s in draw(kind):
        stack = []
        for sign in s.text:
            if sign in closes.values():
                stack.append(sign)
            elif sign in closes:
                assert stack.pop() == closes[sign], s.text
            elif sign == '"':
                if '"' in stack:
                    assert stack.pop() == '"', s.text
                else:
                    stack.append(sign)
        assert stack == [], s.text


def _pattern(template: str, **groups: str) -> re.Pattern:
    text = re.escape(template)
    for name, group in groups.items():
        text = text.replace(re.escape("{" + name + "}"), group)
    return re.compile(text)


def _held_out_in(texts: str) -> tuple[int, list[tuple[str, ...]]]:
    """Opposites and stories found in text by pattern, and those of them that are held out."""
    phrases = "|".join(set(PHRASES["opposite"]))
    fillers = "|".join(map(re.escape, relational.FILLERS))
    count, forbidden = 0, []
    for form, (before, end) in FORMS.items():
        pattern = _pattern(
            before + "{y}" + end,
            r=f"(?:{phrases})", x=r"(\w+)", y=r"(\w+)", f=f"(?:{fillers})", n=r"\w+",
        )  # fmt: skip
        for word, answer in pattern.findall(texts):
            count += 1
            if relational.held_out_form(word, answer, form):
                forbidden.append((word, answer, form))
    for story in STORIES:
        pattern = _pattern(story, a=r"(\w+)", b=r"(\w+)", p=r"\w+", s=r"\w+", t=r"\w+")
        for first, second in pattern.findall(texts):
            count += 1
            if relational.held_out_names(first, second):
                forbidden.append((first, second))
    return count, forbidden


def test_held_out_combinations_never_occur_in_training_text():
    texts = "\n\n".join(islice(relational.documents(seed=0), 20_000))
    count, forbidden = _held_out_in(texts)
    assert count > 15_000  # the patterns do find the sentences
    assert forbidden == []


def test_the_search_for_held_out_combinations_finds_them(monkeypatch):
    """Mutation: a generator that forgets what is held out is caught."""
    check_form, check_names = relational.held_out_form, relational.held_out_names
    monkeypatch.setattr(relational, "held_out_form", lambda *_: False)
    monkeypatch.setattr(relational, "held_out_names", lambda *_: False)
    texts = "\n\n".join(islice(relational.documents(seed=0), 2_000))
    monkeypatch.setattr(relational, "held_out_form", check_form)
    monkeypatch.setattr(relational, "held_out_names", check_names)
    forbidden = _held_out_in(texts)[1]
    assert {len(found) for found in forbidden} == {2, 3}


def test_held_out_sentences_are_held_out():
    for s in draw("opposite", 50, held_out=True):
        assert relational.held_out_form(s.words[0], s.answer.strip(), s.form)
    for s in draw("names", 50, held_out=True):
        assert relational.held_out_names(*s.words[:2])


def test_held_out_rules_do_not_depend_on_the_order():
    assert relational.held_out_names("Mary", "John") == relational.held_out_names("John", "Mary")
    for form in FORMS:
        one = relational.held_out_form("hot", "cold", form)
        assert one == relational.held_out_form("cold", "hot", form)


def test_a_generator_of_one_relation_never_names_another():
    text = " ".join(islice(relational.documents(["copy"], seed=2), 500))
    assert "opposite" not in text.replace('"opposite"', "") and "synonym of" not in text
