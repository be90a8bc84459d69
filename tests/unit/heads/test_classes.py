"""The published classes, and the one model that they are drawn for."""

import pytest

from saekit.heads.classes import (
    GPT2_SMALL_SHAPE,
    GPT2_SMALL_START,
    IOI_TITLE,
    ioi_classes,
    is_gpt2_small,
)

SHIFTED = (*GPT2_SMALL_START[:-1], GPT2_SMALL_START[-1] + 0.001)


def test_the_published_table():
    """Wang et al. 2022: 26 heads in 7 classes."""
    classes = ioi_classes()
    assert classes.title == IOI_TITLE == "'Interp. in the Wild' classifications"
    assert not classes.measured and "2211.00593" in classes.source
    heads = {c.name: set(c.heads) for c in classes.drawn}
    assert heads["Name Mover"] == {(9, 9), (10, 0), (9, 6)}
    assert heads["Negative Name Mover"] == {(10, 7), (11, 10)}
    assert heads["Backup"] | heads["Backup (Negative)"] == {
        (10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (9, 7), (9, 0), (11, 9),
    }  # fmt: skip
    assert heads["Backup (Negative)"] == {(9, 7)}
    everything = [head for c in classes.drawn for head in c.heads]
    everything += [head for group in classes.others.values() for head in group]
    assert len(everything) == len(set(everything)) == 26
    assert classes.of((9, 9)) == ["Name Mover"] and classes.of((5, 5)) == ["induction"]
    assert {(c.panel, c.mark) for c in classes.drawn} == {
        ("scores", "x"), ("scores", "dot"), ("suppression", "x"), ("suppression", "dot"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("id", "shape", "start", "is_it"),
    [
        ("gpt2", {}, GPT2_SMALL_START, True),
        ("openai-community/gpt2", {}, GPT2_SMALL_START, True),
        ("gpt2", {}, tuple(x + 0.00004 for x in GPT2_SMALL_START), True),  # rounding of the print
        ("gpt2", {}, SHIFTED, False),  # other weights under this name
        ("gpt2", {}, GPT2_SMALL_START[:3], False),
        ("./gpt2", {}, GPT2_SMALL_START, False),  # a copy in a folder may be fine-tuned
        ("gpt2-mini", {}, GPT2_SMALL_START, False),
        ("gpt2", {"n_layer": 24}, GPT2_SMALL_START, False),
        ("gpt2", {"vocab_size": 50264}, GPT2_SMALL_START, False),
    ],
)
def test_strict_about_which_model_it_is(id, shape, start, is_it):
    assert is_gpt2_small(id, {**GPT2_SMALL_SHAPE, **shape}, start) == is_it
