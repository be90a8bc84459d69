import json

import pytest

from saekit.concepts.catalogue import Catalogue, Chain, ClampTest, Concept, LayerScore
from saekit.errors import FormatError, InputError
from saekit.report.terminal.concept_tables import catalogue_table


@pytest.fixture
def catalogue():
    good = LayerScore(0, True, [7, 2], 0.95, 0.9, 1.0, 0.99, 0.1, 40, 0.3, [2.5, 1.25])
    bad = LayerScore(1, False, [9], 0.31, 0.2, 0.6, 0.7, 0.3, 40, 0.05, [1.0])
    late = LayerScore(3, True, [1], 0.8, 0.8, 0.8, 0.95, 0.1, 40, 0.1, [3.0])
    none = LayerScore(0, False, [], 0.0, 0.0, 0.0, None, 0.0, 0)
    return Catalogue(
        model="m", fingerprint="f", dictionaries="d", text="t", tokens=100,
        concepts=[
            Concept("large", "input", ["large", " large"], (0, 0), [good, bad, late], ["0/7"],
                    chains=[Chain(["0/2", "2/5", "3/1"], [1.25, 2.0, 3.0]),
                            Chain(["0/7", "1/1"], [2.5, 1.0])]),
            Concept("small", "output", [" small"], None, [none],
                    clamped=[ClampTest(3, [4, 5], [0.2, 2.5], [51, 100], 100, 0.1, 0.9)]),
        ],
        links={
            "tau_cosine": 0.5, "tau_correlation": 0.4, "links": 1200, "trials": 5000, "fdr": 0.01,
            "target_fdr": 0.05, "null_links": {"shifted": 0, "swapped": 12},
            "null_chains": {"shifted": {}, "swapped": {"2": 12}},
            "chain_lengths": {"2": 300, "13": 40},
        },
    )  # fmt: skip


def test_round_trip(catalogue, tmp_path):
    catalogue.save(tmp_path / "concepts.json")
    assert Catalogue.load(tmp_path / "concepts.json") == catalogue
    document = json.loads((tmp_path / "concepts.json").read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert document["concepts"][0]["span"] == [0, 0]
    assert document["concepts"][1]["span"] is None
    assert document == json.loads(json.dumps(catalogue.to_dict()))


def test_views(catalogue):
    large = catalogue.concept("large")
    assert large.found_layers == [0, 3]
    assert large.best.layer == 0
    assert large.feature_names() == ["0/7", "0/2", "3/1"]
    assert large.at(2) is None
    assert catalogue.name_of(0, 2) == "large"
    assert catalogue.name_of(1, 9) is None  # it was not found there
    assert [c.name for c in catalogue.only("small").concepts] == ["small"]
    with pytest.raises(InputError, match='no concept "huge"; known are large, small'):
        catalogue.only("huge")


def test_the_table_shows_every_layer_and_says_what_was_not_found(catalogue):
    table = catalogue_table(catalogue)
    assert "large (input: `large` ` large`): layer 0 (also found at 3)" in table
    assert "0/7, 0/2" in table
    rows = [line.split("  ") for line in table.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["0", "0.950", "0.990", "0.900", "1.000", "0.100", "40", "0/7, 0/2"] in cells
    assert ["1", "0.310", "0.700"] in [row[:3] for row in cells if row[-1:] == ["not found"]]
    assert "small (output: ` small`): not found at any layer" in table
    assert ["0", "0.000", "n/a"] in [row[:3] for row in cells if row[-1:] == ["not found"]]


def test_the_table_shows_chains_clamps_and_nulls(catalogue):
    table = catalogue_table(catalogue)
    assert "several of its features: layers 0-3\n    layers 0-3: 0/2 2/5 3/1" in table
    assert "0/7 1/1" not in table  # one feature of the concept only
    assert (
        "clamping 3/5 raises the logit by 2.50: more than 100 of 100 random features do "
        "(their median 0.10, largest 0.90)"
    ) in table
    assert "cosine of at least 0.5 and a correlation of at least 0.4: 1,200 links in 5,000" in table
    assert "0 with displaced activations, 12 with decoder rows swapped" in table
    assert "at most 1.0% are false (wanted: 5%)" in table
    assert "340 chains, the longest over 13 layers (by chance 2)" in table


def test_files_of_older_versions_have_no_chains(catalogue, tmp_path):
    document = catalogue.to_dict()
    for concept in document["concepts"]:
        del concept["chains"], concept["clamped"]
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert Catalogue.load(path).concepts[0].chains == []


def test_broken_files_are_refused(catalogue, tmp_path):
    path = tmp_path / "concepts.json"
    with pytest.raises(FormatError, match="Cannot read"):
        Catalogue.load(path)
    document = catalogue.to_dict()
    for change, sentence in (
        ({"schema_version": 2}, "schema_version 2"),
        ({"concepts": [{"name": "x"}]}, "is not a list of concepts"),
        ({"concepts": 3}, "is not a list of concepts"),
    ):
        path.write_text(json.dumps({**document, **change}), encoding="utf-8")
        with pytest.raises(FormatError, match=sentence):
            Catalogue.load(path)
    path.write_text(json.dumps(document)[:50], encoding="utf-8")
    with pytest.raises(FormatError, match="truncated"):
        Catalogue.load(path)


def broken(document):
    """Documents with one wrong value each, and what is said of it."""
    concept = document["concepts"][0]
    layer, chain = concept["layers"][0], concept["chains"][0]
    yield document["links"], "null_links", None, "null_links is missing"
    yield document["links"], "tau_cosine", "half", "tau_cosine is 'half'"
    yield layer, "f1", float("nan"), "f1 is nan"
    yield layer, "p99", [1.0], "large at layer 0 has lists of different lengths"
    yield layer, "features", [-1, 2], "features.0 is -1"
    yield chain, "features", ["x"], "features.0 is 'x'"
    yield concept, "layers", [], "layers is "
    yield concept, "span", [0], "span"


@pytest.mark.parametrize("number", range(8))
def test_a_wrong_value_is_named_on_reading(catalogue, number):
    document = json.loads(json.dumps(catalogue.to_dict()))
    part, key, value, said = list(broken(document))[number]
    if value is None:
        del part[key]
    else:
        part[key] = value
    with pytest.raises(FormatError, match=said):
        Catalogue.from_dict(document, "concepts.json")
