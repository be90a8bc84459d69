"""Relations: the shipped tables, the rules, and users' files with every way to get them wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.errors import InputError
from saekit.heads.relations import open_relation, read_relation, relation_names

SMALL = {"genders", "young_animals"}  # English has no hundred of these


@pytest.mark.parametrize("name", relation_names())
def test_every_shipped_relation_is_whole(name):
    relation = open_relation(name)
    assert relation.name == name
    assert relation.source and relation.about
    assert relation.category in {"algorithmic", "knowledge", "linguistic", "translation"}
    assert len(set(relation.pairs)) == len(relation.pairs)
    assert len(relation.pairs) >= (30 if name in SMALL else 100)
    for word in (word for pair in relation.pairs for word in pair):
        assert word == word.strip() != ""
    if not relation.copying:
        assert all(source != target for source, target in relation.pairs) or name in {
            "first_letters", "last_letters",
        }  # fmt: skip


def test_there_are_at_least_fifteen():
    assert len(relation_names()) >= 15
    assert {"name_copying", "general_copying", "opposites", "capitals"} <= set(relation_names())


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("name_copying", ("Mary", "Mary")),
        ("opposites", ("small", "large")),
        ("opposites", ("large", "small")),
        ("comparatives", ("big", "bigger")),
        ("superlatives", ("happy", "happiest")),
        ("past_tenses", ("go", "went")),
        ("plurals", ("child", "children")),
        ("gerunds", ("run", "running")),
        ("third_person", ("carry", "carries")),
        ("adverbs", ("happy", "happily")),
        ("capitals", ("France", "Paris")),
        ("country_languages", ("Brazil", "Portuguese")),
        ("first_letters", ("house", "h")),
        ("last_letters", ("house", "e")),
        ("following_years", ("1999", "2000")),
        ("following_numbers", ("99", "100")),
        ("pronouns", ("queen", "she")),
        ("homophones", ("sea", "see")),
        ("compounds", ("foot", "football")),
        ("capitalised", ("house", "House")),
    ],
)
def test_a_pair_of_each_kind(name, pair):
    pairs = open_relation(name).pairs
    assert pair in pairs or (name == "homophones" and pair[::-1] in pairs)


def test_k_is_one_for_copying_only():
    assert open_relation("name_copying").default_k == 1
    assert open_relation("general_copying").default_k == 1
    assert open_relation("opposites").default_k == 10
    assert open_relation([(5, 5), (6, 6)]).default_k == 1
    assert open_relation([(5, 5), (6, 7)]).default_k == 10


words = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="#"),
    min_size=1,
)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=20, unique=True))
def test_files_of_every_form_give_the_same_pairs(pairs, tmp_path_factory):
    import csv

    folder = tmp_path_factory.mktemp("relation")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (folder / f"mine{suffix}").open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, delimiter=delimiter)
            writer.writerows([("source", "target"), *pairs])
    (folder / "mine.json").write_text(json.dumps(pairs), encoding="utf-8")
    for suffix in (".csv", ".tsv", ".json"):
        relation = open_relation(str(folder / f"mine{suffix}"))
        assert (relation.name, relation.category) == ("mine", "user")
        assert relation.pairs == tuple(pairs)


def test_spaces_a_mark_and_comments_do_no_harm(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\ufeff# from my notes\nSource,Target\n hot , cold\n\nbig,small\n", "utf-8")
    assert read_relation(path).pairs == (("hot", "cold"), ("big", "small"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "word,answer\nhot,cold\n", "columns word, answer"),
        ("a.csv", "source,target,score\nhot,cold,1\n", "columns source, target, score"),
        ("a.csv", "source\nhot\n", "columns source;"),
        ("a.csv", "source,target\n", "holds no pairs"),
        ("a.csv", "source,target\nhot,cold\nbig\n", "row 3: a pair is"),
        ("a.csv", "source,target\nhot,\n", "row 2: the pair .* empty word"),
        ("a.csv", "source,target\nhot,cold\nbig,small\nhot,cold\n", "row 4: .*row 2 already"),
        ("a.csv", 'source,target\n"hot,cold\n', "no table"),
        ("a.json", "[", "not valid JSON"),
        ("a.json", '{"hot": "cold"}', "is no list"),
        ("a.json", "[]", "holds no pairs"),
        ("a.json", '[["hot"]]', "pair 1: a pair is"),
        ("a.json", '["hotcold"]', "pair 1: a pair is"),
        ("a.json", '[["hot", null]]', "neither two words"),
        ("a.json", '[["hot", "cold"], [" hot", "cold "]]', "pair 2: .*pair 1 already"),
        ("a.txt", "hot cold", "name ends in .csv, .tsv, .json"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as caught:
        open_relation(str(path))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_binary_one(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: No such file"):
        open_relation(str(tmp_path / "none.csv"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        open_relation(tmp_path / "b.csv")
    with pytest.raises(InputError, match="Cannot read"):
        (tmp_path / "folder.csv").mkdir()
        open_relation(tmp_path / "folder.csv")
