"""Whole dictionary sets in and out: SAELens releases and folders, sparsify, dictionary_learning."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from saekit.coordinates import hook_name
from saekit.errors import FormatError, InputError, ModelError
from saekit.files import ensure_writable
from saekit.model.loading import LanguageModel, LoadableModel, load_model
from saekit.sae.dictionary import Dictionary
from saekit.sae.interchange import dictionary_learning, saelens, sparsify
from saekit.sae.storage import dictionary_set as storage
from saekit.sae.storage.dictionary_set import DictionarySet, check_fit
from saekit.sae.storage.manifest import MANIFEST

logger = logging.getLogger(__name__)

READERS: dict[str, tuple[str, Callable[[Path], Dictionary]]] = {
    # format -> (the file that tells it, what reads the folder around that file)
    "saelens": (storage.WEIGHTS, storage.load_dictionary),
    "sparsify": (sparsify.WEIGHTS, sparsify.read_folder),
    "dictionary_learning": (dictionary_learning.WEIGHTS, dictionary_learning.read_folder),
}
WRITERS: dict[str, tuple[Callable[[int], str], Callable[[Path, Dictionary], None]]] = {
    # format -> (folder name of a layer, what writes it)
    "sparsify": (sparsify.module_name, sparsify.write_folder),
    "dictionary_learning": (dictionary_learning.place_name, dictionary_learning.write_folder),
}


def read_folders(source: Path) -> tuple[str, list[Dictionary]]:
    """Every dictionary in a folder or below it, and the format they are in.

    Raises:
        FormatError: none there, more than one format, or a dictionary that cannot be used.
    """
    found = {
        name: sorted(path.parent for path in source.rglob(file))
        for name, (file, _) in READERS.items()
    }
    formats = [name for name, folders in found.items() if folders]
    if len(formats) != 1:
        files = ", ".join(f"{file} ({name})" for name, (file, _) in READERS.items())
        what = f"dictionaries of {' and '.join(formats)}" if formats else f"none of {files}"
        raise FormatError(f"{source} holds {what}; give a folder with those of one library.")
    name = formats[0]
    read = READERS[name][1]
    bar = tqdm(found[name], desc="importing", unit=" dictionaries", delay=2)
    return name, [read(folder) for folder in bar]


def import_dictionaries(
    source: str | Path,
    out: str | Path,
    model: LoadableModel | None = None,
    ids: Sequence[str] | None = None,
) -> DictionarySet:
    """Make a dictionary set of another library's dictionaries, at most one per layer.

    Everything that can be folded into the weights is; outputs on the model's unprocessed stream
    are those of the library on the stream it was trained on (see `Dictionary.centre_input`).

    Args:
        source: a folder (of one dictionary, or with such folders below it) in the form of SAELens,
            sparsify or dictionary_learning; or a SAELens release.
        out: folder of the set.
        model: the model they belong to; None for the one that SAELens' metadata name.  Where it
            cannot be loaded, the set is written without its fingerprint, and a warning says so.
        ids: of a SAELens release, which dictionaries; None for all.

    Raises:
        InputError: `out` holds a set, two dictionaries of one layer, no such release, no network.
        FormatError: a source that cannot be read.
        MismatchError: dictionaries of another width or of more layers than the model has.
    """
    out, path = Path(out), Path(source).expanduser()
    if (out / MANIFEST).exists():
        raise InputError(f"{out} holds a dictionary set already: choose another --out folder.")
    if path.is_dir():
        if ids:
            raise InputError(f"{path} is a folder: ids (--id) belong to SAELens releases.")
        library, dictionaries = read_folders(path)
        origin = path.resolve().name
    else:
        library, dictionaries = "saelens", list(saelens.read_release(str(source), ids))
        origin = str(source)
    by_layer = {dictionary.layer: dictionary for dictionary in dictionaries}
    if len(by_layer) < len(dictionaries):
        layers = [dictionary.layer for dictionary in dictionaries]
        twice = next(layer for layer in layers if layers.count(layer) > 1)
        raise InputError(
            f"{source} holds several dictionaries of layer {twice}: choose one per layer "
            "(one folder, or --id of a release)."
        )
    id, opened = _open(model, dictionaries)
    if opened is not None:
        check_fit(dictionaries, opened)
    ensure_writable(out)
    named = {layer: _placed(d, id, opened) for layer, d in sorted(by_layer.items())}
    manifest = _manifest(named, id, opened) | {"source": {"library": library, "name": origin}}
    DictionarySet(named, manifest, out).save(out)
    return DictionarySet.load(out)


def _open(
    model: LoadableModel | None, dictionaries: Sequence[Dictionary]
) -> tuple[str, LanguageModel | None]:
    """The model's id, and the model if it can be loaded."""
    names = [d.metadata.get("model_name") for d in dictionaries]
    chosen = model if model is not None else next((name for name in names if name), None)
    if chosen is None:
        raise InputError("The dictionaries do not say which model they belong to: give --model.")
    try:
        opened = load_model(chosen)
    except ModelError as error:
        assert isinstance(chosen, str)
        logger.warning(
            "%s The set is written without the model's fingerprint, so that nothing will notice "
            "another model of the same size.",
            error,
        )
        return chosen, None
    return opened.id, opened


def _placed(dictionary: Dictionary, id: str, model: LanguageModel | None) -> Dictionary:
    """The dictionary with the metadata of a saekit set."""
    layer = dictionary.layer
    hook = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
    metadata: dict[str, Any] = {"hook_name": hook, "model_name": id, **dictionary.metadata}
    if model is not None:
        metadata["hook_name"] = hook_name(layer, model.n_layers)
        metadata["model_fingerprint"] = model.fingerprint
    metadata.pop("sae_lens_version", None)  # the version that is written counts
    return replace(dictionary, metadata=metadata)


def _manifest(
    dictionaries: dict[int, Dictionary], id: str, model: LanguageModel | None
) -> dict[str, Any]:
    every = list(dictionaries.values())

    def common(values: list[Any]) -> Any:
        return values[0] if all(value == values[0] for value in values) else None

    prepend_bos = common([d.metadata.get("prepend_bos") for d in every])
    return {
        "model": id,
        "fingerprint": model.fingerprint if model else None,
        "weights": "unprocessed",
        "prepend_bos": True if prepend_bos is None else bool(prepend_bos),
        "layers": list(dictionaries),
        "folders": {str(layer): d.metadata["hook_name"] for layer, d in dictionaries.items()},
        "architecture": common([d.architecture for d in every]),
        "training_architecture": common([d.training_architecture for d in every]),
        "d_in": common([d.d_in for d in every]),
        "d_sae": max(d.d_sae for d in every),
        "k": common([d.k for d in every]),
        "centre_input": any(d.centre_input for d in every),
        "training": {"context": common([d.metadata.get("context_size") for d in every])},
    }


def export_dictionaries(
    dictionaries: DictionarySet, library: str, out: str | Path, layers: Sequence[int] | None = None
) -> list[Path]:
    """Write a set for another library, one folder per layer; returns the folders.

    SAELens needs no export: the folders of a set are its own.

    Args:
        dictionaries: the set.
        library: "sparsify" or "dictionary_learning".
        out: folder to write into.
        layers: which; None for all.

    Raises:
        InputError: an unknown library or layer, a dictionary that the library cannot express, or
            a folder that cannot be written.
    """
    if library not in WRITERS:
        raise InputError(
            f'saekit does not write "{library}", only {" and ".join(WRITERS)} '
            "(the folders of a set are SAELens' own)."
        )
    folder_name, write = WRITERS[library]
    chosen = [dictionaries[layer] for layer in (dictionaries.layers if layers is None else layers)]
    folder = ensure_writable(out)
    written = []
    for dictionary in tqdm(chosen, desc="exporting", unit=" dictionaries", delay=2):
        written.append(folder / folder_name(dictionary.layer))
        write(written[-1], dictionary)
    return written
