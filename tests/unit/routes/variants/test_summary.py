"""Variants: files, what is left out, medians by hand, the stability of the head set.

Mutations tried by hand, each of which fails here: refused shares counted as 0; pairs of a prompt
with itself in the mean Jaccard; the key of each variant chosen anew.
"""

import pytest

from saekit.errors import InputError
from saekit.report.terminal.variant_text import render_variants
from saekit.routes.trace import trace
from saekit.routes.variants.summary import (
    mean_jaccard,
    measured,
    row_of,
    trace_variants,
)
from saekit.routes.variants.templates import read_variants

MANY = list("abcdefgh") * 5
PROMPT = 'The opposite of "large" is "'


def written(tmp_path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_one_prompt_a_line(tmp_path):
    path = written(tmp_path, "a.txt", "one two\n\n  three\none two\n")
    assert read_variants(path) == ["one two", "  three"]


def test_a_template_gives_all_combinations(tmp_path):
    path = written(
        tmp_path, "a.toml", "template = 'The {a} \"{b}\" {{x}}'\na = ['p', 'q']\nb = ['r', 's']\n"
    )
    assert read_variants(path) == [
        f'The {a} "{b}" {{x}}' for a in "pq" for b in "rs"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "\n\n", "holds no prompt"),
        ("a.toml", "template = ", "is no template"),
        ("a.toml", "template = 'no place'", "needs a line such as template"),
        ("a.toml", "template = 3", "is no template"),
        ("a.toml", "template = '{a}'", "the template has a, the lists are missing"),
        ("a.toml", "template = '{a}'\nb = ['x']", "the template has a, the lists are b"),
        ("a.toml", "template = '{a}'\na = [1]", "a must be a list of words"),
        ("a.toml", "template = '{a} {'\na = ['x']", "is no template"),
        ("a.toml", "template = '{a:d}'\na = ['x']", "needs a line such as template"),
        ("a.toml", "template = '{a!r}'\na = ['x']", "needs a line such as template"),
        ("a.toml", "template = '{} {a}'\na = ['x']", "needs a line such as template"),
        ("a.toml", "template = '{a.b}'\na = ['x']", "needs a line such as template"),
        ("a.txt", "\n".join(map(str, range(1001))), "gives 1001 prompts; at most 1000"),
        ("a.toml", f"template = '{{a}}{{b}}'\na = {MANY}\nb = {MANY}", "gives 1600 prompts"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, name, text, sentence):
    with pytest.raises(InputError, match=sentence):
        read_variants(written(tmp_path, name, text))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"nothing.txt cannot be read: No such file or dir\w+\.$"):
        read_variants(tmp_path / "nothing.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        read_variants(tmp_path / "bytes.txt")


def test_refused_values_are_counted_not_averaged():
    row = measured([1.0, None, 3.0, 8.0])
    assert (row.median, row.n, row.refused) == (3.0, 3, 1)
    assert row.interval == [1.0, 8.0]
    assert measured([None]).median is None


def test_jaccard_by_hand():
    a, b, c = frozenset("xy"), frozenset("yz"), frozenset("xy")
    assert mean_jaccard([a, b, c]) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert mean_jaccard([frozenset(), frozenset()]) == 1
    assert mean_jaccard([a]) is None


@pytest.fixture(scope="module")
def variants(planted, sharp_features):
    """Two prompts where "large" is token 5, one where it is not, one that is too long."""
    model = planted({(1, 2): 8.0, (1, 0): -2.0})
    dictionaries = sharp_features(model)
    prompts = [PROMPT, PROMPT.replace(" of ", " for "), PROMPT.replace("The", "An"),
               PROMPT.replace("large", "small"), PROMPT + " large"]  # fmt: skip
    traced = [p for p in prompts if len(model.tokens(p)) == 8]
    found = trace_variants(
        model, dictionaries, prompts, key=5, query=8, tokens=8, target="3/1", random_sets=5
    )
    return model, dictionaries, traced, found


def test_variants_sum_up_traces(variants):
    model, dictionaries, prompts, found = variants
    kept = [p for p in prompts if "small" not in p]
    rows = [
        row_of(trace(model, dictionaries, p, "3/1", 8, 5, random_sets=5)) for p in kept
    ]  # fmt: skip
    assert found.rows == rows
    assert found.n == len(kept) >= 2
    assert found.measures["share_positive"].median == pytest.approx(1, abs=1e-4)
    assert found.measures["n80"].median == 1
    assert found.measures["share_causal"].refused == found.n  # -2 works against: no share
    assert found.measures["share_causal"].median is None
    assert [(row.head, row.share) for row in found.heads] == [("L1-H2", 1)]
    assert found.jaccard == 1
    assert found.jaccard_random < 1 or found.n == 2
    reasons = {row["prompt"]: row["reason"] for row in found.left_out}
    assert "not active at position 8" in reasons[PROMPT.replace("large", "small")]
    assert "tokens, not 8" in reasons[PROMPT + " large"]


def test_the_key_is_the_given_one(variants):
    """From position 6 nothing comes, on any variant."""
    model, dictionaries, prompts, _ = variants
    found = trace_variants(
        model, dictionaries, prompts[:2], key=6, query=8, tokens=8, target="3/1", random_sets=0
    )
    assert (found.key, found.query, found.n) == (6, 8, 2)
    assert found.measures["joint_drop"].median == pytest.approx(0, abs=1e-5)


def test_the_table_of_variants(variants):
    found = variants[3]
    text = render_variants(found)
    head = (f"{found.n} prompts, key 5 -> query 8", f"{len(found.left_out)} left out", "n/a")
    for words in (*head, "share positive", "L1-H2 100%", "Fewer than 20 prompts", "tokens, not 8"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 140


def test_too_few_variants_are_refused(variants):
    model, dictionaries, *_ = variants
    with pytest.raises(InputError, match='there are 0 of 1 \\("large": it has 1 tokens, not 8'):
        trace_variants(model, dictionaries, ["large"], key=5, query=8, tokens=8)
