"""A feature as HTML: its numbers, its tokens and its strongest examples."""

from saekit.features.records import Example, FeatureRecord
from saekit.report.formatting import visible, xml
from saekit.wording import number, percent

SHOWN_TOKENS = 8
SHOWN_EXAMPLES = 5
_BLUE = "76, 140, 235"  # readable behind light and dark text at the opacities below
_STRONGEST = 0.55


def example_html(example: Example, maximum: float) -> str:
    """Tokens of an example, the stronger the activation the bluer; the example's own outlined."""
    spans = []
    for place, (token, activation) in enumerate(
        zip(example.tokens, example.activations, strict=True)
    ):
        opacity = _STRONGEST * min(activation / maximum, 1) if maximum > 0 else 0
        style = f"background:rgba({_BLUE},{opacity:.3f});border-radius:3px;padding:1px 0"
        if place == example.position:
            style += f";outline:1.5px solid rgb({_BLUE})"
        shown = visible(token).replace("·", " ") if token.strip() else visible(token)
        title = xml(f'"{visible(token)}": {number(activation)}')
        spans.append(f'<span style="{style}" title="{title}">{xml(shown)}</span>')
    return (
        '<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9">'
        f'<span style="font-weight:600;padding-right:1em">{number(example.value)}</span>'
        + "".join(spans)
        + "</div>"
    )


def feature_html(record: FeatureRecord) -> str:
    """Name, frequency, the tokens it fires on and promotes, and its strongest examples."""
    name = f": {record.naming.shown}" if record.naming and record.naming.kind else ""
    rows = {
        "active on": f"{percent(record.density)} of positions ({record.count:,})",
        "activation": f"mean {number(record.mean)}, largest {number(record.max)}",
        "fires on": [row.token for row in record.top_tokens],
        "promotes": [row.token for row in record.output_top],
        "suppresses": [row.token for row in record.output_bottom],
    }
    cells = "".join(
        f'<tr><th style="text-align:left;padding-right:1em">{title}</th>'
        f'<td style="text-align:left">{xml(_words(value))}</td></tr>'
        for title, value in rows.items()
        if value
    )
    examples = "".join(
        example_html(example, record.max) for example in record.examples[:SHOWN_EXAMPLES]
    )
    heading = xml(f"Feature {record.name}{name}")
    return f"<div><strong>{heading}</strong><table>{cells}</table>{examples}</div>"


def _words(value: str | list[str]) -> str:
    if isinstance(value, str):
        return value
    return "  ".join(f'"{visible(token)}"' for token in value[:SHOWN_TOKENS])
