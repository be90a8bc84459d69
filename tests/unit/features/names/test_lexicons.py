import numpy as np
import pytest

from saekit.features.names.lexicons import CLASSES, Words

VOCABULARY = ["large", " large", " Large", "\n", " ", '"', "\ufffd", "er", " May", " seven", "7"]


def test_forms_of_a_word_are_one():
    words = Words(VOCABULARY)
    assert words.texts == ["large", "\n", " ", '"', "\ufffd", "er", "may", "seven", "7"]
    assert words.of_token.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert words.counts(np.array([1, 2, 3, 0, 0, 5, 0, 0, 0, 0, 4])).tolist() == [
        6, 0, 0, 5, 0, 0, 0, 0, 4
    ]  # fmt: skip
    assert (words.number("large"), words.number("small")) == (0, None)
    assert words.nameable.tolist() == [True, False, False, *[True], False, *[True] * 4]


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("brackets", ['"']),
        ("digits", ["7"]),
        ("months", [" May"]),
        ("number words", [" seven"]),
        ("blanks", ["\n", " "]),
        ("capitalised", [" Large", " May"]),
        ("parts of words", ["large", "er"]),
    ],
)
def test_classes(name, members):
    assert [VOCABULARY[token] for token in Words(VOCABULARY).members(name)] == members


def test_only_classes_with_members_are_listed():
    assert "pronouns" in CLASSES
    assert "pronouns" not in Words(VOCABULARY).classes
