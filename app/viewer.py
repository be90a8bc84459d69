"""Entry of the viewer: the pages and what they share.  Start it with `saekit view [DIR]`.

The pages are in `views/`: a folder named `pages/` would make Streamlit run a page without this
entry when its address is opened first.
"""

import sys
from pathlib import Path

# Streamlit puts only this folder on the path; the pages import `app.state`.
ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import streamlit as st  # noqa: E402

st.set_page_config(page_title="saekit", layout="wide")
# No icons here: Streamlit would fetch the page's icon from the network for the browser tab.
page = st.navigation(
    [
        st.Page("views/circuit.py", title="Circuit", default=True),
        st.Page("views/features.py", title="Features"),
        st.Page("views/feature.py", title="Feature"),
    ],
    position="top",  # the figure needs the width
)
st.html("<style>.stMainBlockContainer { padding: 4rem 1.5rem 2rem; }</style>")
page.run()
