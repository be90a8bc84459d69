"""What the pages share: the chosen dictionary set, cached readers, and errors as sentences.

Readers are cached by folder and by the time the file was last written, so that a rebuilt file is
read again.  Only `live_circuit` loads torch, and only when it is called.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from saekit.bundled import DEFAULT_DICTIONARIES, SEED_PROMPT, bundled
from saekit.coordinates import feature_name
from saekit.errors import FormatError, SaekitError
from saekit.features.index.feature_index import FeatureIndex
from saekit.report.formatting import plain
from saekit.routes.circuit import Circuit
from saekit.sae.storage.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from saekit.concepts.catalogue import Catalogue

FOLDER_VARIABLE = "SAEKIT_DICTIONARIES"  # set by `saekit view DIR`
CONCEPTS, CIRCUITS = "concepts.json", "circuits"
_MARKDOWN = re.compile(r"([\\`*\[\]$~<])")


def literal(text: str) -> str:
    """A text for Streamlit's Markdown that is shown as it is written, whatever tokens are in it."""
    return _MARKDOWN.sub(r"\\\1", text)


@contextmanager
def sentences() -> Iterator[None]:
    """Show what a `SaekitError` says, in place of a traceback, and end the page there."""
    try:
        yield
    except SaekitError as error:
        st.error(literal(str(error)), icon=":material/error:")
        st.stop()


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def dictionary_sets() -> dict[str, Path]:
    """Dictionary sets to choose from, by folder name: the one asked for, its neighbours, bundled.

    The first is the default.
    """
    asked = os.environ.get(FOLDER_VARIABLE)
    folders = [Path(asked), *sorted(Path(asked).parent.glob("*"))] if asked else []
    try:
        folders += sorted(bundled(str(Path(DEFAULT_DICTIONARIES).parent)).glob("*"))
    except SaekitError:  # a checkout in which nothing is trained yet
        folders += []
    found: dict[str, Path] = {}
    for folder in folders:
        if (folder / MANIFEST).is_file() and folder.resolve() not in found.values():
            name = folder.name if folder.name not in found else str(folder)
            found[name] = folder.resolve()
    return found


def header(title: str) -> None:
    """Title of a page, and at its right the dictionary set, whose name is in the URL.

    Raises:
        FormatError: there is no dictionary set at all.
    """
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    left.header(title)
    sets = dictionary_sets()
    if not sets:
        raise FormatError(
            "There is no dictionary set to show. Train one: saekit demo, or "
            "saekit train gpt2-mini --out dictionaries/gpt2-mini; then saekit view DIR."
        )
    name = right.selectbox("Dictionary set", list(sets), key="set", bind="query-params")
    st.session_state["folder"] = str(sets[name])
    manifest = read_manifest(sets[name])
    layers = manifest["layers"]
    own = manifest.get("per_layer", {})
    sizes = {own.get(str(layer), {}).get("d_sae", manifest["d_sae"]) for layer in layers}
    model = Path(str(manifest["model"])).name
    organism = (
        " gpt2-mini is a small model made for saekit, a model organism: nothing here is a claim "
        "about GPT-2."
    )
    widths = " or ".join(f"{size:,}" for size in sorted(sizes))
    left.caption(
        f"Model {plain(model)}, layers {layers[0]}-{layers[-1]}, {widths} features each."
        f"{organism if model == 'gpt2-mini' else ''}"
    )


def folder() -> Path:
    """The chosen dictionary set."""
    return Path(st.session_state["folder"])


def link(**parameters: str) -> dict[str, str]:
    """Query parameters of a link to another page: these, and the chosen set if it is not the
    default one (a page switch empties the URL)."""
    name = st.session_state.get("set")
    default = next(iter(dictionary_sets()), None)
    return {**parameters, **({"set": name} if name and name != default else {})}


def restore(page: str, names: Iterable[str]) -> None:
    """Give a page's widgets the values they had before a visit to another page.

    A page switch empties the address, also the one that the browser's Back returns to.  An address
    with any of the names in it is a new question and is left as it is.
    """
    if any(name in st.query_params for name in names):
        return
    for name, value in st.session_state.get(f"{page} before", {}).items():
        if name not in st.session_state:
            st.session_state[name] = value


def keep(page: str, names: Iterable[str]) -> None:
    """Remember a page's values for `restore`; call it after the widgets."""
    values = {name: st.session_state[name] for name in names if name in st.session_state}
    st.session_state[f"{page} before"] = values


@st.cache_resource(show_spinner=False, max_entries=4)
def _index(path: str, stamp: int) -> FeatureIndex:
    return FeatureIndex.open(path)


def index() -> FeatureIndex:
    """The feature index of the chosen set.

    Raises:
        FormatError: there is none; the sentence names the command that builds it.
    """
    from saekit.features.index.index_file import INDEX_FILE

    path = folder() / INDEX_FILE
    return _index(str(path), _stamp(path))


@st.cache_data(show_spinner=False, max_entries=8)
def _catalogue(path: str, stamp: int) -> "Catalogue":
    from saekit.concepts.catalogue import Catalogue

    return Catalogue.load(path)


def catalogue() -> "Catalogue | None":
    """The named concepts of the chosen set, or None where none were searched for."""
    path = folder() / CONCEPTS
    return _catalogue(str(path), _stamp(path)) if path.is_file() else None


def concept_names(layer: int, feature: int) -> list[str]:
    """Concepts that a feature belongs to."""
    known = catalogue()
    name = feature_name(layer, feature)
    return [c.name for c in known.concepts if name in c.feature_names()] if known else []


@st.cache_data(show_spinner=False, max_entries=256)
def _stored(path: str, stamp: int) -> Circuit:
    return Circuit.load(path)


def stored_circuits() -> list[Circuit]:
    """The circuits stored with the chosen set; one that cannot be read, or that belongs to other
    weights of the model, is reported and left out."""
    circuits = []
    fingerprint = read_manifest(folder())["fingerprint"]
    for path in sorted((folder() / CIRCUITS).glob("*.json")):
        try:
            circuit = _stored(str(path), _stamp(path))
        except FormatError as error:
            st.warning(literal(str(error)))
            continue
        if circuit.fingerprint == fingerprint:
            circuits.append(circuit)
        else:
            st.warning(literal(f"{path} was traced on other weights of the model and is left out."))
    # the example that the project is about comes first
    return sorted(circuits, key=lambda circuit: circuit.prompt != SEED_PROMPT)


@st.cache_resource(show_spinner=False, max_entries=2)
def _loaded(path: str, stamp: int) -> tuple[Any, Any]:
    from saekit.model.loading import load_model
    from saekit.sae.storage.dictionary_set import DictionarySet

    dictionaries = DictionarySet.load(path)
    manifest = dictionaries.manifest
    model = load_model(manifest["model"], prepend_bos=manifest["prepend_bos"])
    dictionaries.check_model(model)
    return model, dictionaries


@st.cache_data(show_spinner=False, max_entries=64)
def _live(
    path: str,
    stamp: int,
    concepts_stamp: int,
    prompt: str,
    target: str | None,
    query: int | None,
    key: int | None,
    heads: int,
) -> Circuit:
    from saekit.routes.trace import trace

    model, dictionaries = _loaded(path, stamp)
    concepts = Path(path) / CONCEPTS
    known = _catalogue(str(concepts), concepts_stamp) if concepts_stamp else None
    return trace(
        model, dictionaries, prompt, target=target, query=query, key=key, heads=heads,
        catalogue=known,
    )  # fmt: skip


def live_circuit(
    prompt: str, target: str | None, query: int | None, key: int | None, heads: int
) -> Circuit:
    """Trace a prompt now (loads torch and the model the first time)."""
    at = folder()
    stamps = _stamp(at / MANIFEST), _stamp(at / CONCEPTS)
    with st.spinner("Tracing. The first prompt also loads the model."):
        return _live(str(at), *stamps, prompt, target, query, key, heads)
