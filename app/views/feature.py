"""One feature: how often and how strongly it fires, on what, and what it promotes."""

import streamlit as st

from app import state
from app.charts import histogram, token_table
from saekit.coordinates import feature_name, parse_feature
from saekit.features.records import Example, FeatureRecord
from saekit.report.feature_html import example_html
from saekit.report.formatting import plain, span_text, visible
from saekit.wording import number

SHOWN_EXAMPLES = 10


def _tokens(record: FeatureRecord) -> None:
    left, middle, right = st.columns(3)
    with left:
        st.subheader("Fires on")
        token_table(
            [
                {"token": visible(row.token), "times": row.count, "mean": row.mean, "max": row.max}
                for row in record.top_tokens
            ],
            "No token in the indexed text.",
        )
    for column, title, rows in (
        (middle, "Promotes", record.output_top),
        (right, "Suppresses", record.output_bottom),
    ):
        with column:
            st.subheader(title)
            token_table(
                [{"token": visible(row.token), "logit": row.value} for row in rows],
                "Not in this index.",
            )


def _examples(examples: list[Example], record: FeatureRecord) -> None:
    if not examples:
        st.caption("The feature was not active in the indexed text.")
    for number_, example in enumerate(examples[:SHOWN_EXAMPLES]):
        text, link = st.columns([10, 2], vertical_alignment="center")
        text.html(example_html(example, record.max))
        prompt = "".join(example.tokens[: example.position + 1])
        if prompt.strip():
            link.page_link(
                "views/circuit.py", label="Trace", icon=":material/hub:",
                help=f"The circuit of {record.name} on the text up to the outlined token "
                f"(example {number_ + 1}).",
                query_params=state.link(prompt=prompt, target=record.name),
            )  # fmt: skip


def _relatives(record: FeatureRecord) -> None:
    """Features of the same concepts in other layers."""
    known = state.catalogue()
    mine = state.concept_names(record.layer, record.feature)
    if known is None:
        st.caption(f"No concepts are stored. Find them: `saekit concepts {state.folder()} --find`")
        return
    if not mine:
        st.caption("The feature belongs to no named concept.")
    for name in mine:
        concept = known.concept(name)
        others = [other for other in concept.feature_names() if other != record.name]
        st.markdown(f"**{state.literal(plain(name))}**: {span_text(concept.span)}")
        with st.container(horizontal=True):
            for other in others:
                query = state.link(feature=other)
                st.page_link("views/feature.py", label=other, query_params=query)


def _show(record: FeatureRecord) -> None:
    names = state.concept_names(record.layer, record.feature)
    if record.naming and record.naming.kind:
        scores = record.naming.scores
        told = "not measured" if scores.detection is None else number(scores.detection)
        null = "n/a" if scores.null_detection is None else number(scores.null_detection)
        st.markdown(f"**{state.literal(plain(record.naming.shown))}**")
        st.caption(
            f"{state.literal(plain(record.naming.rule))}. Balanced accuracy of detection on "
            f"held-out text: {told} (the name of another feature: {null})."
        )
    if record.label or names:
        st.markdown(f"**{state.literal(plain(record.label or ', '.join(names)))}**")
    columns = st.columns(4)
    columns[0].metric(
        "Density", f"{number(100 * record.density)}%", help="Share of tokens it is active on."
    )
    columns[1].metric("Active tokens", f"{record.count:,}")
    columns[2].metric("Mean activation", number(record.mean), help="Where it is active.")
    columns[3].metric("Largest activation", number(record.max))
    if not record.count:
        st.info("This feature was never active in the indexed text.")
    else:
        st.altair_chart(histogram(record), width="stretch")
    _tokens(record)
    st.subheader("Examples")
    strongest, sampled = st.tabs(["Strongest", "From each range of strength"])
    with strongest:
        _examples(record.examples, record)
    with sampled:
        _examples(record.samples, record)
    st.subheader("Same concept in other layers")
    _relatives(record)


with state.sentences():
    state.header("Feature")
    index = state.index()
    first = feature_name(index.layers[0], 0)
    name = st.text_input("Feature", key="feature", bind="query-params", placeholder=first)
    if name:
        _show(index.feature(*parse_feature(name)))
    else:
        st.info(f"Give a feature as layer/index, for example {first}, or search by token:")
        st.page_link("views/features.py", label="Features", query_params=state.link())
