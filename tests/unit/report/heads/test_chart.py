"""The chart's specification, and its three file forms.

Mutations tried by hand, each of which fails here: layer and head axes exchanged; the colour scale
fitted to the data; the panels exchanged; marks of both panels on one.
"""

import re

import pytest

from saekit.heads.classes import IOI_TITLE, ioi_classes
from saekit.report.heads.chart import SHAPES, atlas_chart, atlas_html, atlas_png, atlas_svg
from tests.unit.heads.samples import atlas


def panels(**changes):
    return atlas_chart(atlas(**changes)).to_dict()["hconcat"]


def test_two_panels_with_fixed_colours_and_the_right_axes():
    left, right = panels()
    assert left["title"]["text"] == "tiny: Name-Copying heads"
    assert right["title"]["text"] == "tiny: (Suppression) Name-Copying heads"
    for panel in (left, right):
        encoding = panel["layer"][0]["encoding"]
        assert encoding["x"]["field"] == "layer" and encoding["x"]["title"] == "layer"
        assert encoding["y"]["field"] == "index" and encoding["y"]["title"] == "head"
        assert encoding["color"]["scale"] == {
            "scheme": "viridis", "domain": [0, 1], "clamp": True,
        }  # fmt: skip


def values(panel):
    return {
        (row["layer"], row["index"]): row["score"] for row in panel["layer"][0]["data"]["values"]
    }


def test_cells_hold_the_scores():
    left, right = panels()
    assert values(left)[(1, 2)] == 1 and values(left)[(0, 1)] == 0
    assert values(right)[(0, 1)] == 0.5 and values(right)[(1, 2)] == 0
    assert len(values(left)) == 6


def marks(panel):
    layer = panel["layer"][1]["layer"][1]
    rows = panel["layer"][1].get("data") or layer["data"]
    return {(row["head"], row["class"]) for row in rows["values"]}, layer["encoding"]["shape"]


def test_classes_are_drawn_on_their_panel_with_their_mark():
    left, right = panels()
    heads, shape = marks(left)
    assert heads == {("L1-H2", "Name Mover"), ("L1-H1", "Backup")}
    assert shape["scale"]["domain"] == ["Name Mover", "Backup"]
    assert shape["scale"]["range"] == [SHAPES["x"], SHAPES["dot"]]
    assert shape["legend"]["title"] == "Measured here"
    assert marks(right)[0] == {("L0-H1", "Negative")}
    assert marks(panels(classes=ioi_classes())[0])[1]["legend"]["title"] == IOI_TITLE


def test_without_classes_there_are_no_marks():
    assert [len(panel["layer"]) for panel in panels(classes=None)] == [1, 1]


def test_gpt2_is_titled_as_in_the_paper():
    left, right = panels(model="gpt2", relation="country_languages")
    assert left["title"]["text"] == "GPT-2: Country-Languages heads"
    assert right["title"]["text"] == "GPT-2: (Suppression) Country-Languages heads"


def test_the_baselines_are_written_below():
    text = " ".join(atlas_chart(atlas()).to_dict()["title"]["text"])
    assert "Share of 2 pairs" in text and "at most 0.500" in text and "constant head: 0.500" in text
    assert "by hand" in text


def test_svg_and_png():
    svg = atlas_svg(atlas())
    assert svg.startswith("<svg") and "tiny: Name-Copying heads" in svg and "Measured here" in svg
    png = atlas_png(atlas())
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert width > height > 100


def test_the_html_opens_without_a_network():
    """Nothing is loaded: no script, style or image with an address."""
    html = atlas_html(atlas())
    assert "Name-Copying heads" in html
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", html)
    assert not re.search(r"""\bimport\b[^;]{0,80}from\s*["']https?:""", html)
    assert "@import" not in html


@pytest.mark.parametrize("name", ["gpt2-small", "openai-community/gpt2"])
def test_hub_ids_of_gpt2(name):
    assert panels(model=name)[0]["title"]["text"].startswith("GPT-2: ")
