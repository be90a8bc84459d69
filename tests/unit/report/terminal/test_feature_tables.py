import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from saekit.features.index.feature_index import RANKS
from saekit.features.records import Example, FeatureRecord, TokenHit
from saekit.report.terminal import feature_tables as table

PROMPT = 'The opposite of "large" is "'


def shown(thing, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(thing)
    return console.file.getvalue()


def test_the_firing_token_is_in_brackets():
    example = Example([" a", " [b]", "\n"], [1, 2, 3], [0.0, 3.0, 1.0], 1, 3.0, 0, 1)
    assert table.marked(example).plain == " a[ [b]]⏎"
    assert table.marked(example, (0, 0)).plain == "[ [b]]"


def test_control_characters_are_shown_not_sent():
    assert table.quoted("\x1b[2J\r") == '"\\x1b[2J\\x0d"'
    assert table.quoted(' a"\n\\') == '" a"\\n\\\\"'
    example = Example(["\x1b[2J", " b"], [1, 2], [0.0, 3.0], 1, 3.0, 0, 1)
    assert table.marked(example).plain == "\\x1b[2J[ b]"


@pytest.mark.parametrize("token", ["\r", '"', "\n", ",", "\ufffd", ' "a",\r\n'])
def test_any_token_comes_back_from_csv(token):
    # mutation tried: without quotes around a carriage return the row is broken in two
    hit = TokenHit(1, 2, token, 3, 4, 5, *[0.5] * 6)
    text = table.hits_csv([hit, hit])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(row["token"], row["count"], row["match"]) for row in rows] == [(token, "4", "0.2")] * 2


def test_bars_end_at_the_largest_activation():
    record = FeatureRecord(0, 0, 111, 0.1, 1, 3, np.array([100, 0, 1, 10, 0]), np.arange(6.0))
    # log1p: 4.62, 0, 0.69, 2.40 of 4.62 -> 8, 0, 2, 5 eighths
    assert table.histogram_bars(record) == "█ ▂▅"


def test_tables_show_what_was_asked(index, plain_model, dictionaries):
    hits = index.by_token(" large", layers=[0], top=3)
    text = shown(table.hits_table(index, hits))
    assert "0/5" in text
    assert '" large"' in text
    assert "[ large]" in text
    page = shown(table.record_table(index.feature(0, 5)))
    assert "feature 0/5" in page
    assert "[ large]" in page
    live = shown(table.live_table(index.by_text(plain_model, dictionaries, PROMPT)))
    assert '"large"' in live
    assert "0/3 (1)" in live
    assert "No feature" in shown(table.hits_table(index, []))
    dead = next(f for f in range(70) if index.densities(0)[f] == 0)
    assert "never active" in shown(table.record_table(index.feature(0, dead)))


@pytest.mark.parametrize("rank", RANKS)
def test_the_table_of_hits_is_whole_in_80_columns(index, rank):
    """A pipe has 80 columns.  Mutation tried: the example without `ratio` leaves no name whole."""
    hits = index.by_token(" large", rank=rank, top=5)
    lines = shown(table.hits_table(index, hits, rank), width=80).splitlines()
    assert rank in lines[0]
    for hit, line in zip(hits, lines[1:], strict=False):
        assert line.startswith(hit.name)
        assert f"{hit.density:.2%}" in line
        assert "[" in line


def test_json_and_csv_say_the_same_as_the_objects(index, plain_model, dictionaries, live_feature):
    hits = index.by_token("large")
    document = json.loads(json.dumps(table.hits_json(hits), allow_nan=False))
    rows = list(csv.DictReader(io.StringIO(table.hits_csv(hits))))
    for hit, entry, row in zip(hits, document["hits"], rows, strict=True):
        assert entry["name"] == row["name"] == hit.name
        assert entry["token"] == row["token"] == hit.token
        assert entry["lift"] == float(row["lift"]) == hit.lift
        assert entry["match"] == float(row["match"]) == hit.match
    record = index.feature(2, live_feature)
    document = json.loads(json.dumps(table.record_json(record), allow_nan=False))
    assert document["name"] == f"2/{live_feature}"
    assert sum(document["histogram"]["counts"]) == document["count"]
    assert len(document["histogram"]["edges"]) == len(document["histogram"]["counts"]) + 1
    assert document["examples"][0]["tokens"] == record.examples[0].tokens
    found = index.by_text(plain_model, dictionaries, PROMPT)
    document = json.loads(json.dumps(table.live_json(found), allow_nan=False))
    assert document["tokens"] == found.tokens
    assert document["hits"][0]["position"] == 1
