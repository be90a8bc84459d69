"""Charts and coloured text of the feature page."""

import altair as alt
import streamlit as st

from saekit.features.records import Example, FeatureRecord
from saekit.report.formatting import visible, xml
from saekit.wording import number

_BLUE = "76, 140, 235"  # readable behind light and dark text at the opacities below
_STRONGEST = 0.55


def histogram(record: FeatureRecord) -> alt.Chart:
    """Active tokens by activation, up to the last bin that is not empty."""
    used = max((i for i, count in enumerate(record.histogram) if count), default=0) + 1
    rows = [
        {
            "from": float(record.edges[i]),
            "to": float(record.edges[i + 1]),
            "tokens": int(record.histogram[i]),
        }
        for i in range(used)
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("from:Q", bin="binned", title="activation"),
            x2="to:Q",
            y=alt.Y("tokens:Q", title="tokens"),
            tooltip=[
                alt.Tooltip("from:Q", format=".3g"),
                alt.Tooltip("to:Q", format=".3g"),
                alt.Tooltip("tokens:Q", format=",d"),
            ],
        )
        .properties(height=220)
    )


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


def token_table(rows: list[dict[str, object]], empty: str) -> None:
    """A small table, or a sentence in its place."""
    if not rows:
        st.caption(empty)
        return
    formats = {
        name: st.column_config.NumberColumn(format="%.3g")
        for name, value in rows[0].items()
        if isinstance(value, float)
    }
    st.dataframe(rows, column_config=formats, hide_index=True, width="stretch")
