from saekit.features.records import Example
from saekit.report.feature_html import example_html


def test_example_tokens_are_escaped_and_coloured():
    example = Example(["<b>", " is\n"], [1, 2], [0.0, 2.0], 1, 2.0, 0, 1)
    html = example_html(example, 4.0)
    assert "<b>" not in html and "&lt;b&gt;" in html
    assert "rgba(76, 140, 235,0.275)" in html  # half of the maximum, half of the strongest colour
    assert html.count("outline:") == 1
