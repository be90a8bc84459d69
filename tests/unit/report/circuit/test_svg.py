import re
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saekit.errors import InputError
from saekit.report.circuit.head_map import head_svg
from saekit.report.circuit.svg import circuit_svg
from saekit.routes.circuit_parts import CircuitConcept
from saekit.wording import number, percent
from tests.unit.report.samples import circuit

SVG = "{http://www.w3.org/2000/svg}"
slow_input = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in read(svg).iter(f"{SVG}text")]


def titles(svg: str) -> str:
    return "\n".join(element.text or "" for element in read(svg).iter(f"{SVG}title"))


def shown_numbers(document) -> list[str]:
    """Every number that the figure must show, written by the shared functions."""
    drawn, random = document.shown, document.random_sets
    return [
        percent(drawn.share_positive),
        percent(drawn.share_causal),
        number(drawn.joint_drop),
        percent(document.set.share_causal),
        number(document.set.joint_drop),
        number(random.median_drop),
        number(random.p95_drop),
        number(document.completeness_error),
        percent(document.error_node_share),
        *[percent(head.share) for head in document.heads],
        *[percent(item.probability) for item in document.prediction],
    ]


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_numbers_are_those_of_the_document(theme):
    document = circuit()
    drawn = " ".join(texts(circuit_svg(document, theme)))
    for shown in shown_numbers(document):
        assert shown in drawn, shown


@slow_input
@given(st.floats(0, 1), st.floats(0, 1), st.floats(-50, 50), st.floats(0, 50))
def test_no_number_is_a_constant(share, causal, drop, baseline):
    document = circuit(n_layers=2, n_heads=2, chosen=[(1, 0)])
    document.shown.share_positive, document.shown.share_causal = share, causal
    document.shown.joint_drop = drop
    document.random_sets.median_drop = baseline
    drawn = " ".join(texts(circuit_svg(document)))
    assert f"small modulated at {percent(share)}" in drawn
    for shown in shown_numbers(document):
        assert shown in drawn


@slow_input
@given(
    st.lists(st.text(min_size=0, max_size=30), min_size=1, max_size=12),
    st.text(min_size=1, max_size=40),
)
def test_any_tokens_and_names_give_valid_xml(tokens, name):
    document = circuit(tokens, n_layers=1, n_heads=1, chosen=[(0, 0)])
    document.concepts = [CircuitConcept(name, name, 1, [0, 2], [name], name)]
    document.target.concept = document.model = document.dictionaries = name
    document.prediction[0].token = tokens[0]
    for theme in ("light", "auto"):
        read(circuit_svg(document, theme))
    read(head_svg(document, 0, 0))


def test_tokens_are_not_markup():
    svg = circuit_svg(circuit(["<script>", "alert(1)", "</script>", '"&"']))
    assert "<script>" not in svg
    assert {"<script>", '"&"'} <= set(texts(svg))


def test_everything_clickable_says_what_it_is():
    root = read(circuit_svg(circuit()))
    kinds: dict[str, list] = {}
    for element in root.iter(f"{SVG}rect"):
        if element.get("data-kind"):
            kinds.setdefault(element.get("data-kind"), []).append(element)
            assert element.find(f"{SVG}title") is not None
    assert len(kinds["head"]) == 144 + 5
    assert [e.get("data-position") for e in kinds["token"]] == list("12345678")
    assert [e.get("data-concept") for e in kinds["concept"]] == ["opposite", "large", "brackets"]


def test_the_seed_figure_says_what_the_picture_says():
    drawn = texts(circuit_svg(circuit()))
    for expected in (
        "All heads map key pos 5 to query pos 8", "L11-H7", "opposite", "layer 0-1", "large",
        "layer 0-3", "brackets", "layer 0-10", "small", "layer 12, position 8",
        "small modulated at 79%", '·"',
    ):  # fmt: skip
        assert expected in drawn


@pytest.mark.parametrize(
    "document",
    [
        circuit(["one"]),
        circuit(["one"], chosen=[(0, 0)], n_layers=1, n_heads=1, concepts=False),
        circuit(chosen=[]),
        circuit(chosen=[(layer, 3) for layer in range(12)] + [(layer, 4) for layer in range(12)]),
        circuit(maps=False),
        circuit([" token"] * 64, n_layers=2, n_heads=3, chosen=[(1, 2)]),
        circuit([" incomprehensibilities"] * 80, maps=False),
    ],
    ids=["one token", "one head", "no heads", "24 heads", "no maps", "64 tokens", "80 tokens"],
)
def test_odd_circuits_are_drawn_inside_the_page(document):
    root = read(circuit_svg(document))
    width, height = (float(value) for value in root.get("viewBox", "").split()[2:])
    for element in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(element.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert x >= -0.1 and x + w <= width + 0.1
        assert y >= -0.1 and y + h <= height + 0.1
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("y", "nan")) <= height


def test_long_prompts_are_pooled_and_it_is_said():
    drawn = texts(circuit_svg(circuit([" a"] * 64, n_layers=2, n_heads=2, chosen=[(1, 1)])))
    assert "Each cell: largest weight of 2 x 2 token pairs" in drawn
    assert not any("largest weight" in text for text in texts(circuit_svg(circuit())))


def test_themes():
    document = circuit()
    assert "currentColor" in circuit_svg(document, "auto")
    assert "currentColor" not in circuit_svg(document, "dark")
    assert re.search(r'<rect x="0.0" y="0.0"[^>]*fill="#ffffff"', circuit_svg(document, "light"))
    with pytest.raises(InputError, match='"blue" is not a theme'):
        circuit_svg(document, "blue")


def test_a_figure_is_small_enough_to_send():
    assert len(circuit_svg(circuit())) < 120_000


def test_head_map_tells_every_weight():
    document = circuit()
    shown = titles(head_svg(document, 11, 7))
    assert '0.9 from query pos 8 "·"" to key pos 5 "large"' in shown
    with pytest.raises(InputError, match="no attention map of L20-H0"):
        head_svg(document, 20, 0)
