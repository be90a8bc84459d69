import pytest

from saekit.concepts.definitions import (
    BUILT_IN,
    Definition,
    forms,
    read_definitions,
    resolve,
)
from saekit.errors import InputError
from saekit.features.names.lexicons import is_bracket, is_digits, is_punctuation

VOCABULARY = [" large", "large", "Large", "larger", '"', ' "', '".', "(", " ])", ".", " opposite",
              "small", " small", "“", "a)", "7)", "’", "", " "]  # fmt: skip


def test_the_built_in_concepts_name_these_tokens():
    found = {d.name: [VOCABULARY[i] for i in resolve(d, VOCABULARY)] for d in BUILT_IN}
    assert found == {
        "opposite": [" opposite"],
        "large": [" large", "large", "Large"],
        "brackets": ['"', ' "', '".', "(", " ])", "“"],
        "small": ["small", " small"],
    }
    assert {d.name: d.kind for d in BUILT_IN}["small"] == "output"


@pytest.mark.parametrize(
    ("token", "expected"),
    [('"', True), (' "', True), ("(", True),
     (" [", True), ('".', True), ('"?', True), (" («", True),
     (".", False), ("'", False), ("’s", False), ("(a", False), ("1)", False), ("", False),
     ("\ufffd", False)],
)  # fmt: skip
def test_brackets_are_signs_without_letters_or_digits(token, expected):
    assert is_bracket(token) is expected


def test_other_classes():
    assert [is_digits(t) for t in (" 12", "1a", "", "x")] == [True, False, False, False]
    assert [is_punctuation(t) for t in (" .", '"', "a.", " ", "\ufffd")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_forms_of_a_word():
    assert forms("large") == ("large", " large", "Large", " Large")
    assert forms("7") == ("7", " 7")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kind": "noun", "tokens": ("a",)}, 'kind is "noun"'),
        ({"kind": "input"}, "names no token"),
        ({"kind": "class", "token_class": "verbs"}, 'no class "verbs"'),
        ({"kind": "input", "token_class": "digits"}, "a class stands alone"),
        ({"kind": "output", "tokens": ("a",), "probability": 0.0}, "probability is 0.0"),
    ],
)
def test_impossible_definitions_are_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        Definition("x", **arguments)


def test_words_that_are_no_tokens_are_refused():
    with pytest.raises(InputError, match='"huge" is not a single token'):
        resolve(Definition("size", "input", (*forms("large"), *forms("huge"))), VOCABULARY)
    with pytest.raises(InputError, match="no token of this model"):
        resolve(Definition("d", "class", token_class="digits"), VOCABULARY)


def test_definitions_from_toml(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        '[size]\nwords = ["large"]\ntokens = [" small"]\n'
        '[next]\nkind = "output"\ntokens = [" small"]\nprobability = 0.25\n'
        '[signs]\nclass = "brackets"\n',
        encoding="utf-8",
    )
    assert read_definitions(path) == (
        Definition("size", "input", (*forms("large"), " small")),
        Definition("next", "output", (" small",), probability=0.25),
        Definition("signs", "class", token_class="brackets"),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "defines no concept"),
        ("[a\n", "is not a TOML file"),
        ("a = 1\n", '"a" is not a table'),
        ('[a]\nword = ["x"]\n', 'unknown key "word"'),
        ('[a]\nwords = "x"\n', '"words" of concept "a" must be a list of texts'),
        ('[a]\nwords = ["x"]\nprobability = "high"\n', '"probability" of concept "a" must be'),
        ("[a]\n", "names no token"),
        ('[a]\nwords = ["x", " "]\n', 'concept "a" has an empty word'),
        ('[a]\ntokens = [""]\n', 'Concept "a" has an empty word'),
        ('[""]\nwords = ["x"]\n', "A concept needs a name"),
    ],
)
def test_broken_toml_is_told_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=sentence) as caught:
        read_definitions(path)
    assert "\n" not in str(caught.value)


def prompts(positive, negative, more=""):
    def listed(n, sign):
        return "[" + ", ".join(f'"{sign} {i}"' for i in range(n)) + "]"

    return f"[a]\npositive = {listed(positive, 'yes')}\nnegative = {listed(negative, 'no')}\n{more}"


def test_contrast_prompts_from_toml(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(prompts(20, 22), encoding="utf-8")
    (definition,) = read_definitions(path)
    assert definition.kind == "contrast"
    assert definition.positive == tuple(f"yes {i}" for i in range(20))
    assert len(definition.negative) == 22
    assert resolve(definition, VOCABULARY) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (prompts(19, 20), "19 different positive prompts; 20 are"),
        (prompts(20, 0), "0 different negative prompts"),
        (prompts(20, 20, 'words = ["large"]'), "contrast prompts stand alone"),
        (prompts(20, 20, 'kind = "input"'), "contrast prompts stand alone"),
        (prompts(20, 20).replace("no 3", "yes 3"), '"yes 3" is both a positive and a negative'),
        (prompts(20, 20).replace("no 3", " "), "has an empty negative prompt"),
        (prompts(20, 20).replace('"yes 3"', "3"), '"positive" of concept "a" must be a list'),
        ('[a]\nkind = "contrast"\n', "0 different positive prompts"),
    ],
)
def test_broken_contrast_prompts_are_told_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=sentence) as caught:
        read_definitions(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        read_definitions(tmp_path / "none.toml")
