"""Text by name: equal shares, determinism, and what is kept for measuring."""

from itertools import islice

import numpy as np
import pytest

from saekit.errors import InputError
from saekit.text.corpora import prose
from saekit.text.sources import open_text


def test_same_arguments_same_stream():
    assert list(islice(open_text(seed=2), 300)) == list(islice(open_text(seed=2), 300))
    assert list(islice(open_text(seed=2), 300)) != list(islice(open_text(seed=3), 300))


def test_sources_have_equal_shares_of_characters(tmp_path):
    (tmp_path / "short.txt").write_text("\n---\n".join(["a" * 50] * 5))
    (tmp_path / "long.txt").write_text("b" * 1000)
    text = "".join(islice(open_text([tmp_path / "short.txt", tmp_path / "long.txt"]), 400))
    assert text.count("a") / len(text) == pytest.approx(0.5, abs=0.05)


def test_held_out_prose_is_never_in_training_text():
    every = set(prose())
    training = set(islice(open_text(["prose"]), 500))
    measuring = set(islice(open_text(["prose"], held_out=True), 500))
    assert training | measuring == every
    assert training & measuring == set()


def test_held_out_generated_text_is_another_stream():
    training = set(islice(open_text(["generated"]), 300))
    measuring = set(islice(open_text(["generated"], held_out=True), 300))
    assert len(training & measuring) < 10  # very short documents may coincide


def test_a_wrong_path_is_reported_at_once():
    with pytest.raises(InputError, match=r"no text at nowhere\.txt"):
        open_text(["generated", "nowhere.txt"])


def test_ids_and_text_have_equal_shares_too(tmp_path):
    """A token counts as four characters."""
    np.save(tmp_path / "ids.npy", np.ones((10, 25), int))
    (tmp_path / "a.txt").write_text("a" * 100)
    documents = list(islice(open_text([tmp_path / "ids.npy", tmp_path / "a.txt"]), 40))
    assert sum(isinstance(document, str) for document in documents) == 20


def test_a_missing_file_is_no_data_set():
    with pytest.raises(InputError, match=r"no text at some/where\.txt: no such file or folder"):
        open_text(["some/where.txt"])
