import json

import pytest

from saekit.concepts.catalogue import Catalogue, Concept, LayerScore, catalogue_table
from saekit.errors import FormatError, InputError


@pytest.fixture
def catalogue():
    good = LayerScore(0, True, [7, 2], 0.95, 0.9, 1.0, 0.99, 0.1, 40, 0.3, [2.5, 1.25])
    bad = LayerScore(1, False, [9], 0.31, 0.2, 0.6, 0.7, 0.3, 40, 0.05, [1.0])
    late = LayerScore(3, True, [1], 0.8, 0.8, 0.8, 0.95, 0.1, 40, 0.1, [3.0])
    none = LayerScore(0, False, [], 0.0, 0.0, 0.0, None, 0.0, 0)
    return Catalogue(
        model="m", fingerprint="f", dictionaries="d", text="t", tokens=100,
        concepts=[
            Concept("large", "input", ["large", " large"], (0, 0), [good, bad, late], ["0/7"]),
            Concept("small", "output", [" small"], None, [none]),
        ],
        links={"fdr": 0.01},
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
    assert "0.950  0.990" in table
    assert "not found at layer 1 (best F1 0.31, AUROC 0.70; 40 positives)" in table
    assert "small (output: ` small`): not found at any layer" in table
    assert "not found at layer 0 (best F1 0.00; 0 positives)" in table


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
