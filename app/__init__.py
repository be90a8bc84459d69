"""The Streamlit viewer (`saekit view`).  Browsing reads stored files and loads no torch."""
