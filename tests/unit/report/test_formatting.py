from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from saekit.report.formatting import plain, shorten, span_text, visible, wrap, xml


def test_tokens_are_visible():
    assert visible(' "') == '·"'
    assert visible("\n\t\x1b") == "↵⇥\\x1b"
    assert visible("\ufffe") == "\\ufffe"
    assert visible("\u0301") == "◌\u0301"
    assert visible("") == "∅"
    assert visible("a\u202eb") == "a\\u202eb"  # would reverse the text after it


def test_spans():
    assert span_text([0, 3]) == "layer 0-3"
    assert span_text([12, 12]) == "layer 12"
    assert span_text(None) == "no layer"


def test_shorten_counts_wide_characters_twice():
    assert shorten("opposite", 8) == "opposite"
    assert shorten("opposites", 8) == "opposit…"
    assert shorten("日本語", 5) == "日本…"


def test_plain_keeps_spaces():
    assert plain("two  names\x00") == "two names\\x00"


def test_wrap():
    assert wrap("aa bb cc", 5) == ["aa bb", "cc"]
    assert wrap("incomprehensible", 5) == ["inco…"]


@given(st.text())
def test_any_text_can_be_put_into_xml(text):
    for shown in (xml(text), xml(visible(text))):
        read = ElementTree.fromstring(f'<a b="{shown}">{shown}</a>')
        assert read.get("b") is not None
    assert ElementTree.fromstring(f"<a>{xml(visible(text))}</a>").text == visible(text)


@given(st.text(), st.integers(1, 20))
def test_shortened_text_fits(text, limit):
    assert cell_len(shorten(text, limit)) <= limit
