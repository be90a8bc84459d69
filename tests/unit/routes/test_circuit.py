"""The Circuit file: round trip, schema, refusals; the screen shows the JSON's numbers."""

import copy
import json
import subprocess
import sys

import jsonschema
import pytest

from saekit.errors import FormatError
from saekit.report.terminal.circuit_text import render
from saekit.routes.circuit import Circuit, rounded
from saekit.routes.circuit_parts import Arrival, CircuitConcept
from saekit.routes.trace import trace
from saekit.routes.trace_document import schema
from saekit.wording import number, percent

FIXED = (
    "schema_version model fingerprint dictionaries prompt tokens prepend_bos target key query "
    "heads set n80 completeness_error error_node_share concepts prediction notes"
).split()


@pytest.fixture(scope="module")
def circuit(tiny_model, random_dictionaries):
    return trace(tiny_model, random_dictionaries, 'The opposite of "large" is "', random_sets=10)


def changed(circuit, **fields):
    other = copy.copy(circuit)
    vars(other).update(fields)
    return other


def test_round_trip(circuit, tmp_path):
    path = tmp_path / "circuits" / "one.json"
    circuit.save(path)
    assert Circuit.load(path) == circuit
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document == circuit.to_dict()
    assert set(FIXED) <= set(document)
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(document) + 2


def test_the_schema_is_valid_and_describes_every_key(circuit):
    jsonschema.Draft202012Validator.check_schema(schema())
    document = circuit.to_dict()
    jsonschema.validate(document, schema())
    assert set(FIXED) <= set(schema()["required"])
    assert set(schema()["properties"]) == set(document) | {"interventions", "variants"}
    for change in (
        {"key": 0}, {"schema_version": 2}, {"tokens": "large"},
        {"set": {**document["set"], "share_positive": 1.2}}, {"prediction": [{"token": "a"}]},
        {"error_node_share": float("nan")}, {"heads": [{**document["heads"][0], "head": "9.9"}]},
    ):  # fmt: skip
        other = {**document, **change}
        if "error_node_share" not in change:  # NaN is no JSON, and above every limit and below
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(other, schema())
        with pytest.raises(FormatError, match=next(iter(change))):
            Circuit.from_dict(other)


def test_every_field_of_a_circuit_is_read_back_and_unknown_ones_are_ignored(circuit):
    document = circuit.to_dict()
    assert Circuit.from_dict(json.loads(circuit.to_json())) == circuit
    later = {**document, "added_later": 1, "set": {**document["set"], "added_later": []}}
    assert Circuit.from_dict(later) == circuit
    jsonschema.validate(later, schema())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": 9}, "key is 9, and there are 8 tokens"),
        ({"query": 12}, "query is 12"),
        ({"patterns": [[[[1.0]]]]}, "not of 8 x 8 tokens"),
    ],
)
def test_places_outside_the_prompt_are_refused(circuit, change, said):
    with pytest.raises(FormatError, match=said):
        Circuit.from_dict({**circuit.to_dict(), **change})


def test_the_schema_says_what_the_fields_mean():
    described = schema()
    assert "pre-activation" in described["properties"]["components"]["description"]
    assert "may leave [0, 1]" in str(described["$defs"]["CircuitSet"]["properties"]["share_signed"])
    assert described["properties"]["schema_version"]["const"] == 1
    assert set(described["$defs"]) >= {"Match", "Outcome", "Variants", "Ablation"}


def test_unknown_versions_and_missing_keys_are_refused(circuit, tmp_path):
    document = circuit.to_dict()
    with pytest.raises(FormatError, match="schema_version 7; this saekit reads 1"):
        Circuit.from_dict({**document, "schema_version": 7})
    older = {k: value for k, value in document.items() if k not in ("ablations", "matches")}
    jsonschema.validate(older, schema())
    assert Circuit.from_dict(older).matches == []
    del document["n80"]
    with pytest.raises(FormatError, match="not a complete saekit circuit: n80 is missing"):
        Circuit.from_dict(document)
    with pytest.raises(FormatError, match="not a complete saekit circuit: set is 3: "):
        Circuit.from_dict({**circuit.to_dict(), "set": 3})
    with pytest.raises(FormatError, match="schema_version None"):
        Circuit.from_dict([])
    path = tmp_path / "cut.json"
    path.write_text('{"schema_version": 1, "mod')
    with pytest.raises(FormatError, match="not valid JSON"):
        Circuit.load(path)


def test_the_screen_shows_the_json(circuit):
    text = render(circuit)
    chosen = circuit.set
    for words in (
        circuit.prompt,
        percent(chosen.share_positive),
        percent(chosen.share_causal),
        number(chosen.joint_drop),
        number(circuit.target.preactivation),
        number(circuit.random_sets.median_drop),
        *(f"{head.head}" for head in circuit.heads),
        *(number(head.contribution) for head in circuit.heads),
        *circuit.notes,
    ):
        assert " ".join(words.split()) in " ".join(text.split()), words
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 48  # one screen, with every note there is


def test_a_long_prompt_is_one_screen_too(circuit):
    """Few of many concepts are listed, those at the ends of the edge first, and how many are not.

    Mutation tried: the first ones in the order of positions.
    """
    row = {"name": "brackets", "kind": "class", "span": [0, 3], "features": list("abcdef")}
    places = [1, 2, 3] * 10 + [circuit.key, circuit.query]
    concepts = [CircuitConcept(**row, position=place) for place in places]
    text = render(changed(circuit, concepts=concepts))
    assert "(a, b, c, ...)" in text
    assert "and 22 more (--json)" in text
    shown = text.split("Concepts")[1].split("\n\n")[0].splitlines()
    assert len(shown) == 11
    assert shown[-2].split()[0] == str(circuit.query)


def test_the_key_is_named_where_it_comes_from_even_if_little_does(circuit):
    rows = [
        Arrival(n, 1.0, 0.0, 1.0, share) for n, share in enumerate((0.3, 0.3, 0.2, 0.1, 0.1), 1)
    ]
    text = render(changed(circuit, arrivals=rows, key=5))
    assert "5 'large' 10%, 1 more;" in text


def test_numbers_are_written_one_way():
    assert [percent(x) for x in (0.8, 0.798, 0.004, 0.0004, 0.0, 0.996, 1.0, 1.333, None)] == [
        "80%", "80%", "0.4%", "<0.1%", "0%", "99.6%", "100%", "133.3%", "n/a",
    ]  # fmt: skip
    assert [number(x) for x in (3.14159, 0.00002, 12345.6, None)] == [
        "3.14", "2e-05", "12,346", "n/a",
    ]  # fmt: skip
    assert rounded(0.123456789) == 0.123457


def test_reading_a_circuit_costs_no_torch():
    code = "import sys, saekit.routes.circuit; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
