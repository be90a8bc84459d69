"""Search features by token; a row opens the feature's page."""

from typing import Any

import streamlit as st

from app import state
from saekit.coordinates import parse_layers
from saekit.features.index.feature_index import RANKS
from saekit.features.records import FeatureName, TokenHit
from saekit.report.formatting import visible

RANK_HELP = (
    "match: purity x share of the tokens it fires on x peak, 1 for a feature of this token alone; "
    "purity: share of the feature's activation that is on this token; lift: how much more often it "
    "fires on this token than in general; mean, max: its activation on the token; density: the "
    "rarest first."
)
MAX_ROWS = 200
_QUESTION = ("token", "rank", "layers", "density", "rows")


def _called(name: FeatureName) -> str:
    told = name.scores.detection
    return "" if not name.kind else name.shown + ("" if told is None else f" {told:.2f}")


def _rows(hits: list[TokenHit]) -> list[dict[str, object]]:
    names = state.index().names
    return [
        {
            "feature": hit.name,
            "layer": hit.layer,
            "concept": ", ".join(state.concept_names(hit.layer, hit.feature)),
            "name": _called(names.get(hit.layer, hit.feature)) if names else "",
            "token": visible(hit.token),
            "match": hit.match,
            "purity": hit.purity,
            "fires on": hit.share,
            "peak": hit.peak,
            "mean": hit.mean,
            "max": hit.max,
            "lift": hit.lift,
            "density": hit.density,
        }
        for hit in hits
    ]


def _columns() -> dict[str, Any]:
    config = st.column_config
    return {
        "name": config.TextColumn(
            width=130,
            help="Given by a rule to what the feature fires on or promotes, and the balanced "
            "accuracy with which it tells where the feature fires, on text that did not choose "
            "it: 0.5 is chance."
        ),
        "match": config.NumberColumn(help="purity x fires on x peak.", format="%.2f"),
        "purity": config.NumberColumn(
            help="Share of the feature's activation that is on this token.", format="percent"
        ),
        "peak": config.NumberColumn(
            help="Largest activation on this token / largest anywhere: below 100% the feature's "
            "strongest examples are of another token.", format="percent",
        ),
        "fires on": config.ProgressColumn(
            help="Share of the token's occurrences on which the feature is active.",
            format="percent", min_value=0, max_value=1,
        ),
        "mean": config.NumberColumn(help="Activation where active, on this token.", format="%.3g"),
        "max": config.NumberColumn(format="%.3g"),
        "lift": config.NumberColumn(
            help="P(active | token) / P(active).", format="%.3g"
        ),
        "density": config.NumberColumn(
            help="Share of all tokens on which the feature is active.", format="percent"
        ),
    }  # fmt: skip


def _search() -> list[TokenHit]:
    index = state.index()
    state.restore("features", _QUESTION)
    columns = st.columns([2, 1, 1, 1, 1], vertical_alignment="bottom")
    token = columns[0].text_input(
        "Token", key="token", bind="query-params", placeholder="large",
        help='"large" asks for the token with and without a leading space, " large" only for '
        "the one with.",
    )  # fmt: skip
    rank = columns[1].selectbox("Sort by", RANKS, key="rank", bind="query-params", help=RANK_HELP)
    layers = columns[2].text_input(
        "Layers", key="layers", bind="query-params", placeholder="all",
        help="Such as 0,3-5.",
    )  # fmt: skip
    density = columns[3].number_input(
        "Max. density", min_value=0.0, max_value=1.0, value=None, step=0.01, format="%g",
        key="density", bind="query-params", placeholder="none",
        help="Leave out features that are active on a larger share of all tokens.",
    )  # fmt: skip
    top = columns[4].number_input(
        "Rows", min_value=1, max_value=MAX_ROWS, value=20, key="rows", bind="query-params"
    )
    state.keep("features", _QUESTION)
    if not token:
        st.info('Type a token to see the features that fire on it, for example "large".')
        return []
    hits = index.by_token(
        token, layers=parse_layers(layers, max(index.layers)) if layers else None,
        top=int(top), rank=rank, max_density=density,
    )  # fmt: skip
    if not hits:
        st.info(
            f'No feature fires on "{visible(token)}" often enough in the {index.n_tokens:,} '
            "indexed tokens: try more layers, a larger density, or index more text with "
            f"`saekit index {state.folder()} --tokens N`."
        )
    return hits


with state.sentences():
    state.header("Features")
    found = _search()
    if found:
        st.caption("Select a row to open the feature.")
        event = st.dataframe(
            _rows(found), column_config=_columns(), hide_index=True, width="stretch",
            height="content" if len(found) <= 20 else 740,
            on_select="rerun", selection_mode="single-row", key="hits",
        )  # fmt: skip
        rows = event["selection"]["rows"]
        if rows:
            name = found[rows[0]].name
            st.switch_page("views/feature.py", query_params=state.link(feature=name))
