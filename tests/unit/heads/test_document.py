"""heads.json: round trip, schema, refusals; the CSV."""

import csv
import io
import json

import jsonschema
import numpy as np
import pytest

from saekit.errors import FormatError, InputError
from saekit.heads.document import schema
from saekit.heads.scores import HeadScores
from tests.unit.heads.samples import atlas


@pytest.mark.parametrize("per_pair", [True, False])
def test_a_round_trip_keeps_everything(tmp_path, per_pair):
    before = atlas()
    before.save(tmp_path / "heads.json", per_pair)
    after = HeadScores.load(tmp_path / "heads.json")
    assert after.to_dict(per_pair) == before.to_dict(per_pair)
    assert (after.scores == before.scores).all()
    assert after.classes == before.classes
    assert after.dynamic is not None and (after.dynamic.natural == 0.25).all()
    if per_pair:
        assert after.words_of(1, 2) == before.pairs
        assert after.words_of(0, 1, suppressed=True) == [("John", "John")]
        assert after.words_of(0, 0) == []
    else:
        with pytest.raises(InputError, match="--pairs"):
            after.words_of(1, 2)


@pytest.mark.parametrize("per_pair", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_the_document_follows_the_schema(per_pair, empty):
    nothing = {"classes": None, "dynamic": None, "causal": None, "salient": None}
    document = atlas(**(nothing if empty else {})).to_dict(per_pair)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(json.dumps(document)), schema())
    assert set(document) == set(schema()["required"]) == set(schema()["properties"])


def test_the_schema_refuses_what_it_should():
    for change in ({"scores": [[1.5]]}, {"schema_version": 2}, {"silent_heads": ["9.9"]},
                   {"fingerprint": "abc"}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**atlas().to_dict(), **change}, schema())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 7}, "schema_version 7"),
        ({"scores": [[0.5]]}, "2 x 3"),
        ({"scores": [[0, 0, 2], [0, 0, 0]]}, "scores.0.2 is 2: .*less than or equal to 1"),
        ({"pairs": None}, "not a complete head atlas"),
        ({"silent_heads": None, "baselines": {}}, "not a complete head atlas"),
        ({"classes": {"title": "x"}}, "not a complete head atlas"),
        ({"per_pair": {"pairs": [["a", "b"]], "mapped": {"nowhere": [0]}, "suppressed": {}}},
         "nowhere"),
    ],
)  # fmt: skip
def test_a_broken_document_is_one_sentence(change, said):
    with pytest.raises(FormatError, match=said):
        HeadScores.from_dict({**atlas().to_dict(), **change})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1', "null"])
def test_a_broken_file_is_one_sentence(tmp_path, text):
    (tmp_path / "heads.json").write_text(text)
    with pytest.raises(FormatError, match=r"heads\.json"):
        HeadScores.load(tmp_path / "heads.json")


def test_top_heads_are_those_above_their_null():
    assert atlas().top_heads() == [((1, 2), 1.0), ((1, 1), 0.125)]  # L0-H2 is below its null
    assert atlas().top_heads(1) == [((1, 2), 1.0)]
    assert atlas().top_heads(suppression=True) == [((0, 1), 0.5)]


def test_the_csv_has_a_row_per_head():
    rows = list(csv.DictReader(io.StringIO(atlas().to_csv())))
    assert [row["head"] for row in rows] == ["L0-H0", "L0-H1", "L0-H2", "L1-H0", "L1-H1", "L1-H2"]
    last = rows[-1]
    assert (last["layer"], last["index"], last["score"], last["null_score"]) == (
        "1", "2", "1.0", "0.5",
    )  # fmt: skip
    assert last["classes"] == "Name Mover" and rows[0]["classes"] == "induction"
    assert last["constant_head"] == "0.5" and last["pairs"] == "2"
    assert last["dynamic_natural"] == "0.25" and last["dynamic_natural_suppression"] == "1.0"
    assert "dynamic_natural" not in atlas(dynamic=None).to_csv()
    assert np.isclose(float(rows[1]["suppression"]), 0.5)
