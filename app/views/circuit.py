"""The circuit of a prompt: stored examples at once, any other prompt traced on demand."""

from typing import Any

import streamlit as st

from app import state
from app.circuit_view import show_svg
from saekit.coordinates import head_name, parse_head
from saekit.errors import SaekitError
from saekit.report.circuit.circuit_tables import tables
from saekit.report.circuit.head_map import head_svg
from saekit.report.circuit.svg import circuit_svg
from saekit.report.export import circuit_png, png_problem
from saekit.report.formatting import plain
from saekit.routes.circuit import Circuit

MAX_HEADS = 24
DEFAULT_HEADS = 5
_CHOICES = ("target", "query", "key", "head", "concept")
_QUESTION = ("prompt", "target", "query", "key", "heads")


def _choose_example() -> None:
    prompt = st.session_state["example"]
    if prompt:
        st.session_state["prompt"] = prompt
        _forget_choices()


def _forget_choices() -> None:
    """Positions and targets of one prompt mean nothing on another."""
    for name in _CHOICES:
        if name in st.session_state:
            st.session_state[name] = None


def _pick(pick: dict[str, Any]) -> None:
    """A click in the figure: token = query, with shift = key; head and concept = details.

    What cannot be asked (a key that is not before the query) is said and changes nothing.
    """
    kind = pick["kind"]
    if kind == "token" and pick.get("shift"):
        if int(pick["position"]) < st.session_state["shown_query"]:
            st.session_state["key"] = int(pick["position"])
        else:
            st.toast("The key must be before the query: attention reads earlier positions.")
    elif kind == "token":
        position = int(pick["position"])
        if position == 1:
            st.toast("Nothing can arrive at position 1: choose a later query.")
            return
        st.session_state["query"] = position
        if (st.session_state.get("key") or 0) >= position:
            st.session_state["key"] = None
    elif kind in ("head", "concept"):
        st.session_state[kind] = pick[kind]


def _same(circuit: Circuit, target: str | None, query: int | None, key: int | None) -> bool:
    own = circuit.target
    return (
        target in (None, own.concept, own.feature)
        and (query or len(circuit.tokens)) == circuit.query
        and key in (None, circuit.key)
    )


def _controls(examples: list[Circuit]) -> dict[str, Any]:
    """The prompt and the choices, all in the URL."""
    default = examples[0].prompt if examples else state.SEED_PROMPT
    known = state.catalogue()
    names = [concept.name for concept in known.concepts] if known else []
    prompts = list(dict.fromkeys(circuit.prompt for circuit in examples))
    state.restore("circuit", _QUESTION)
    top = st.columns([3, 1] if len(prompts) > 1 else [1], vertical_alignment="bottom")
    if "prompt" not in st.session_state and "prompt" not in st.query_params:
        st.session_state["prompt"] = default
    prompt = top[0].text_input(
        "Prompt", key="prompt", bind="query-params", on_change=_forget_choices
    )
    if len(prompts) > 1:
        top[1].selectbox(
            "Stored examples", prompts, index=None, key="example", on_change=_choose_example
        )
    columns = st.columns([2, 1, 1, 2])
    target = columns[0].selectbox(
        "Target", names, index=None, key="target", bind="query-params", accept_new_options=True,
        placeholder="auto", help="A concept, a feature such as 12/345, or a token.",
    )  # fmt: skip
    query = columns[1].number_input(
        "Query", min_value=1, value=None, step=1, key="query", bind="query-params",
        placeholder="last", help="Position; or click a token in the figure.",
    )  # fmt: skip
    key = columns[2].number_input(
        "Key", min_value=1, value=None, step=1, key="key", bind="query-params",
        placeholder="auto", help="Position; or click a token with Shift held.",
    )  # fmt: skip
    heads = columns[3].slider(
        "Heads", 1, MAX_HEADS, DEFAULT_HEADS, key="heads", bind="query-params"
    )
    state.keep("circuit", _QUESTION)
    return {"prompt": prompt, "target": target, "query": query, "key": key, "heads": heads}


def _circuit(examples: list[Circuit], chosen: dict[str, Any]) -> Circuit:
    """The stored circuit that answers the question, else a new one."""
    for circuit in examples:
        if (
            circuit.prompt == chosen["prompt"]
            and len(circuit.heads) == chosen["heads"]
            and _same(circuit, chosen["target"], chosen["query"], chosen["key"])
        ):
            return circuit
    return state.live_circuit(**chosen)


def _downloads(circuit: Circuit) -> None:
    problem = png_problem()
    files = {
        "SVG": ("circuit.svg", "image/svg+xml", lambda: circuit_svg(circuit, "light"), None),
        "PNG": ("circuit.png", "image/png", lambda: circuit_png(circuit), problem),
        "JSON": ("circuit.json", "application/json", circuit.to_json, None),
    }
    with st.container(horizontal=True):
        for label, (name, mime, make, why_not) in files.items():
            st.download_button(
                label, make, name, mime, on_click="ignore", disabled=why_not is not None,
                help=why_not, icon=":material/download:",
            )  # fmt: skip


def _selected(circuit: Circuit) -> None:
    """Details of the clicked head and concept, under the figure."""
    names = [head.head for head in circuit.heads]
    maps = circuit.patterns or []
    every = (head_name(layer, head) for layer, row in enumerate(maps) for head in range(len(row)))
    names = list(dict.fromkeys((*names, *every)))  # so that any head in the address is kept
    concepts = list(dict.fromkeys(concept.name for concept in circuit.concepts))
    left, right = st.columns(2)
    with left:
        st.selectbox(
            "Head", names, index=0 if names else None, key="head", bind="query-params",
            help="Or click a head in the figure.",
        )  # fmt: skip
        name = st.session_state.get("head")
        if name and circuit.patterns:
            drawing = head_svg(circuit, *parse_head(name), theme="auto")
            show_svg(drawing, "head_map", narrowest=240, widest=460)
        elif name:
            st.caption("No attention maps are stored for prompts of more than 64 tokens.")
    with right:
        st.selectbox(
            "Concept", concepts, index=None, key="concept", bind="query-params",
            placeholder="choose one, or click it in the figure",
        )  # fmt: skip
        for concept in circuit.concepts:
            if concept.name == st.session_state.get("concept"):
                st.caption(f"Features of {concept.name} at position {concept.position}:")
                with st.container(horizontal=True):
                    for feature in concept.features:
                        st.page_link(
                            "views/feature.py", label=feature,
                            query_params=state.link(feature=feature),
                        )  # fmt: skip
        if not concepts:
            st.caption(
                "No named concept is active here. Find concepts: "
                f"`saekit concepts {state.folder()} --find`"
            )


def _show(circuit: Circuit) -> None:
    st.session_state["shown_query"] = circuit.query
    show_svg(circuit_svg(circuit, "auto"), "figure", _pick)
    _downloads(circuit)
    st.caption("\n".join(f"- {state.literal(plain(note))}" for note in circuit.notes))
    drawn = tables(circuit)
    selected, *rest = st.tabs(["Selected", *(title for title, *_ in drawn)])
    with selected:
        _selected(circuit)
    for tab, (_, remark, columns, rows) in zip(rest, drawn, strict=True):
        with tab:
            st.caption(state.literal(remark))
            st.dataframe(
                [dict(zip(columns, row, strict=True)) for row in rows],
                hide_index=True,
                width="stretch",
            )


with state.sentences():
    state.header("Circuit")
    stored = state.stored_circuits()
    question = _controls(stored)
    try:
        answer = _circuit(stored, question)
    except SaekitError:
        if any(st.session_state.get(name) is not None for name in ("target", "query", "key")):
            st.button("Choose target, query and key automatically", on_click=_forget_choices)
        raise
    _show(answer)
