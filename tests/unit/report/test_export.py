import io
import json
import logging
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from saekit.errors import InputError
from saekit.report import export
from saekit.report.circuit.circuit_tables import tables
from saekit.report.circuit.svg import circuit_svg
from saekit.report.html import report_page
from saekit.routes.circuit import Circuit
from saekit.wording import number, percent
from tests.unit.report.samples import circuit, document


def test_the_sample_is_a_real_circuit():
    assert circuit().to_dict() == document()


def test_four_files(tmp_path):
    written = export.write_report(circuit(), tmp_path / "new")
    names = {path.name for path in written}
    assert {"circuit.json", "circuit.svg", "report.html"} <= names
    assert json.loads((tmp_path / "new" / "circuit.json").read_text("utf-8")) == document()
    assert (tmp_path / "new" / "circuit.svg").read_text("utf-8") == circuit_svg(circuit(), "light")
    Circuit.load(tmp_path / "new" / "circuit.json")


DEJAVU = "fonts/truetype/dejavu/DejaVuSans.ttf"


@pytest.mark.skipif(not Path("/usr/share", DEJAVU).exists(), reason="no DejaVu font here")
def test_dejavu_alone_is_enough_for_a_picture():
    """Mutation tried: asking for "sans-serif", which the converter maps to Arial alone."""
    assert export.png_problem() is None


@pytest.mark.skipif(export.png_problem() is not None, reason="no font on this system")
def test_png_has_the_words_in_it():
    image = Image.open(io.BytesIO(export.circuit_png(circuit())))
    assert image.width == 2400
    # the header is dark text on white: without a font the strip would be one colour
    header = image.convert("L").crop((860, 10, 1600, 80))
    darkest, lightest = header.getextrema()
    assert darkest < 100 and lightest == 255


def test_without_a_font_the_rest_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(export, "fonts_found", lambda: False)
    with caplog.at_level(logging.WARNING):
        written = export.write_report(circuit(), tmp_path)
    assert {path.name for path in written} == {"circuit.json", "circuit.svg", "report.html"}
    assert "No font of the figure" in caplog.text
    with pytest.raises(InputError, match="No font"):
        export.circuit_png(circuit())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="Cannot write to"):
        export.write_report(circuit(), tmp_path / "file")


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone():
    reader = Links()
    reader.feed(report_page(circuit()))
    assert reader.found and all(link.startswith("data:image/png") for link in reader.found)
    assert "script" not in reader.tags and "link" not in reader.tags
    assert {"svg", "table", "h1"} <= reader.tags


def test_the_page_escapes_tokens():
    page = report_page(circuit(["<script>alert(1)</script>", " is"], concepts=False))
    assert "<script" not in page


def test_tables_show_the_document():
    shown = circuit()
    found = {title: rows for title, _, _, rows in tables(shown)}
    first = shown.heads[0]
    assert found["Heads"][0] == [
        "L11-H7", number(first.attention), number(first.contribution),
        percent(first.share), number(first.causal), "yes",
    ]  # fmt: skip
    assert found["Random sets"] == [["200", "6", "0.0213", "0.312", "99.5%"]]
    assert [row[3] for row in found["Concepts"]][:2] == ["layer 0-1", "layer 0-3"]
    assert all(len(row) == len(columns) for _, _, columns, rows in tables(shown) for row in rows)
