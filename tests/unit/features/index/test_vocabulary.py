import numpy as np
import pytest

from saekit.errors import InputError
from saekit.features.index.vocabulary import Vocabulary

WORDS = Vocabulary(["<bos>", "large", " large", "est", " re", "\ufffd", "\ufffd", "a"], "toy")


def test_a_word_means_both_forms_and_a_space_only_one():
    assert WORDS.ids("large") == [1, 2]
    assert WORDS.ids(" large") == [2]
    assert WORDS.ids("est") == [3]
    assert WORDS.ids("re") == [4]
    assert WORDS.ids(2) == WORDS.ids(np.uint16(2)) == [2]  # ids out of an array, too


def test_several_tokens_are_named():
    with pytest.raises(InputError, match=r'" largeest" is not one token .*\(" large", "est"\)'):
        WORDS.ids(" largeest")
    assert WORDS.pieces("alargeest") == ["a", "large", "est"]
    backing_up = Vocabulary(["ab", "abc", "cd", "d"], "toy")
    assert backing_up.pieces("abcd") in (["ab", "cd"], ["abc", "d"])
    assert backing_up.pieces("abccd") == ["abc", "cd"]
    assert backing_up.pieces("abdc") is None


@pytest.mark.parametrize(("token", "message"), [("xyz", "spells"), ("", "empty"), (8, "0 to 7")])
def test_no_such_token(token, message):
    with pytest.raises(InputError, match=message):
        WORDS.ids(token)
