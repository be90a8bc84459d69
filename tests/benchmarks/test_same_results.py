"""What counts as the same result, by hand, and the two commands on files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.same_results import TOUR, differences, kind
from saekit.cli import build_parser

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "same_results.py"
BEFORE = {
    "prompt": "a",
    "heads": [{"head": "L1-H2", "share": 0.5}, {"head": "L0-H1", "share": 2.0}],
}


def after(**changes):
    return {**BEFORE, **changes}


def test_rounding_is_the_same():
    near = [{"head": "L1-H2", "share": 0.500004}, {"head": "L0-H1", "share": 2.0}]
    assert differences(BEFORE, after(heads=near)) == []
    assert differences({"x": [0.0, 8.0]}, {"x": [7e-7, 8.0]}) == []  # 1e-7 of the largest


def test_small_terms_of_a_sum_that_cancels_are_measured_by_the_largest_number():
    # both signs at one place: the terms may come from numbers as large as any of the document
    assert differences({"x": [1.0, -1e-4], "y": 100.0}, {"x": [1.0, -1.05e-4], "y": 100.0}) == []
    assert differences({"x": [1.0, 1e-4], "y": 100.0}, {"x": [1.0, 1.05e-4], "y": 100.0})


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"heads": BEFORE["heads"][::-1]}, "heads/0/head"),  # another order
        ({"heads": BEFORE["heads"][:1]}, "heads/(length)"),
        ({"prompt": "b"}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"more": 1}, "(keys)"),
        ({"heads": [BEFORE["heads"][0], {"head": "L0-H1", "share": 2.0001}]}, "heads/1/share"),
    ],
)
def test_a_difference_is_named(changed, place):
    assert place in [one["place"] for one in differences(BEFORE, after(**changed))]


def test_a_whole_number_may_become_a_float_but_true_is_no_number():
    assert differences({"n": 1}, {"n": 1.0}) == []
    assert differences({"n": 1}, {"n": True})


def test_kind_leaves_positions_out():
    assert kind(("heads", 3, "share")) == "heads/*/share"


@pytest.mark.parametrize("name", TOUR)
def test_the_tour_is_commands_that_exist(name):
    build_parser().parse_args([*TOUR[name], "--json"])


def test_compare_ends_with_one_unless_the_difference_is_known(tmp_path):
    for folder, document in (("a", BEFORE), ("b", after(prompt="b"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trace.json").write_text(json.dumps(document))
    known = tmp_path / "known"
    known.write_text("trace prompt\n")
    command = [sys.executable, SCRIPT, "compare", tmp_path / "a", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["trace"]["differences"] == [
        {"place": "prompt", "kind": "prompt", "before": "a", "after": "b"}
    ]
    done = subprocess.run([*command, "--known", known], capture_output=True, text=True)
    assert done.returncode == 0
    (tmp_path / "b" / "trace.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "no such file" in done.stdout
