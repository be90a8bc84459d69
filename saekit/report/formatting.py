"""How tokens, spans and names are written in the figure, the report page and the viewer.

Numbers are written by `percent` and `number` of `saekit.wording`, here as on the command
line, from the values of the circuit's JSON: no two places can disagree.
"""

import re
import unicodedata
from xml.sax.saxutils import escape

from rich.cells import cell_len

_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}
# General categories without a glyph of their own: controls, format characters (bidirectional marks,
# zero-width joiners), surrogates, private use, unassigned (U+FFFE is not even legal in XML).
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_COMBINING = {"Mn", "Me"}
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def span_text(span: list[int] | tuple[int, ...] | None) -> str:
    """`span_text([0, 3]) == "layer 0-3"`, `span_text([12, 12]) == "layer 12"`."""
    if not span:
        return "no layer"
    first, last = span[0], span[-1]
    return f"layer {first}" if first == last else f"layer {first}-{last}"


def visible(text: str) -> str:
    """A token with its spaces and control characters made visible; always legal XML text.

    `visible(' "') == '·"'`, `visible("\\n") == "↵"`, `visible("\\x1b") == "\\\\x1b"`.
    """
    out = []
    for character in text:
        category = unicodedata.category(character)
        if character in _VISIBLE:
            out.append(_VISIBLE[character])
        elif category in _UNPRINTABLE:
            code = ord(character)
            out.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
        elif category in _COMBINING and not out:
            out.append("◌" + character)  # an accent needs something to stand on
        else:
            out.append(character)
    return "".join(out) or "∅"


def plain(text: object) -> str:
    """A name, path or sentence as legal text: like `visible`, but spaces stay spaces."""
    return " ".join(visible(word) for word in str(text).split())


def shorten(text: str, limit: int) -> str:
    """At most `limit` character cells, the cut shown by an ellipsis."""
    if cell_len(text) <= limit:
        return text
    kept, used = [], 0
    for character in text:
        used += cell_len(character)
        if used > limit - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


def xml(text: object) -> str:
    """Escaped for element content and for double-quoted attributes; characters that XML forbids
    become U+FFFD."""
    return escape(_ILLEGAL.sub("\ufffd", str(text)), {'"': "&quot;"})


def wrap(text: str, limit: int) -> list[str]:
    """Lines of at most `limit` character cells, broken between words (a long word is shortened)."""
    lines: list[str] = []
    for word in text.split():
        word = shorten(word, limit)
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= limit:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
