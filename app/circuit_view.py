"""The SVG figure as a Streamlit component: it is drawn as it is, and clicks come back.

`st.html` removes `<svg>` and `st.image` shows a dead picture, hence a component.  The SVG is
escaped where it is made (`saekit.report`).
"""

from collections.abc import Callable

import streamlit as st
from streamlit.components.v2 import component

_HTML = '<div class="figure"></div>'
_CSS = """
.figure { width: 100%; overflow-x: auto; color: var(--st-text-color); }
.figure svg { display: block; width: 100%; height: auto; }
[data-kind="token"], [data-kind="head"], [data-kind="concept"] { cursor: pointer; }
[data-kind="token"]:hover, [data-kind="head"]:hover, [data-kind="concept"]:hover {
  stroke: var(--st-primary-color); stroke-width: 2px; }
"""
# The drawing is replaced only when it changed, and the handler is assigned, not added: this
# function runs again on every rerun of the page.
_JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const figure = parentElement.querySelector(".figure");
  if (figure.drawn !== data.svg) {
    figure.innerHTML = data.svg;
    figure.drawn = data.svg;
    const drawing = figure.querySelector("svg");
    drawing.style.minWidth = `${data.narrowest}px`;
    drawing.style.maxWidth = `${data.widest}px`;
  }
  figure.onclick = (event) => {
    const hit = event.target.closest("[data-kind]");
    if (hit) setTriggerValue("pick", { ...hit.dataset, shift: event.shiftKey });
  };
}
"""
_figure = component("saekit_figure", html=_HTML, css=_CSS, js=_JS)


def show_svg(
    svg: str,
    key: str,
    on_pick: Callable[[dict[str, str]], None] | None = None,
    narrowest: int = 760,
    widest: int = 1680,
) -> None:
    """Draw an SVG over the whole width.

    Args:
        svg: what `saekit.report` drew, in theme "auto".
        key: of the component.
        on_pick: called with the `data-*` values of what was clicked and `shift` (bool), before
            the page runs again.
        narrowest, widest: limits of the drawn width in pixels (narrower pages scroll).
    """

    def picked() -> None:
        pick = st.session_state[key].get("pick")
        if pick and on_pick:
            on_pick(pick)

    data = {"svg": svg, "narrowest": narrowest, "widest": widest}
    _figure(key=key, data=data, on_pick_change=picked)
