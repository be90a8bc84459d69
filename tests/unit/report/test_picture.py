"""What a notebook shows: the picture of the object, with its text escaped, without torch."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saekit.features.records import Example, FeatureName, FeatureRecord, TokenStatistic
from saekit.report.circuit.svg import circuit_svg
from saekit.report.picture import picture
from tests.unit.heads.samples import atlas
from tests.unit.report.samples import circuit

ROOT = Path(__file__).parents[3]


def test_a_circuit_shows_its_figure():
    shown = circuit()
    html = shown._repr_html_()
    assert circuit_svg(shown, "auto") in html
    assert "L11-H7" in html and "opposite" in html


def test_head_scores_show_their_grids():
    html = atlas()._repr_html_()
    assert html.count("<svg") == 1 and "Name Mover" in html and "Name-Copying heads" in html


def test_a_feature_shows_tokens_and_examples():
    example = Example([" a", "<b>", "\n"], [1, 2, 3], [0.0, 2.0, 1.0], 1, 2.0, 0, 1)
    record = FeatureRecord(
        3, 14, 20, 0.01, 1.25, 2.0, np.array([20]), np.array([0.0, 2.0]), [example],
        top_tokens=[TokenStatistic("<i>", 5, 20, 1.25, 2.0)],
        naming=FeatureName("tags & more", "class"),
    )  # fmt: skip
    html = record._repr_html_()
    assert "Feature 3/14: tags &amp; more (class)" in html
    assert "1% of positions (20)" in html and "mean 1.25, largest 2" in html
    assert "&quot;&lt;i&gt;&quot;" in html and "&lt;b&gt;" in html and "↵" in html
    assert "<b>" not in html and "<i>" not in html
    assert "promotes" not in html  # not in this record
    bare = dataclasses.replace(record, naming=FeatureName("feature 3/14", ""))._repr_html_()
    assert "<strong>Feature 3/14</strong>" in bare


def test_what_has_no_picture_says_so():
    with pytest.raises(NotImplementedError, match="A int has no picture"):
        picture(3)


def test_showing_costs_no_torch():
    code = (
        "import sys; from tests.unit.report.samples import circuit\n"
        "print(len(circuit()._repr_html_()) > 1000, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]
