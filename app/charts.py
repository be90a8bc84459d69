"""Charts and coloured text of the feature page."""

import altair as alt
import streamlit as st

from saekit.features.records import FeatureRecord


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
