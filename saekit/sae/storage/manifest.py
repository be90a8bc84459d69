"""`manifest.json` of a dictionary set: what was trained, on which model, how well.  Torch-free.

Keys: schema_version, saekit (version), model (id), fingerprint (of the model's weights), weights
("unprocessed"), prepend_bos, layers, folders (layer -> folder name, a hook point), d_in, d_sae, k,
architecture, per_layer (layer -> settings that differ from these), training (the `TrainConfig`),
text, tokens (trained on), seed, metrics (layer -> figures of the last steps of the training: fvu,
l0, dead_share (not active in the last `dead_tokens` tokens), never_active_share (not active once
while the learning rate decayed)).

Imported sets (`saekit import`) have `source` (library, name) instead of tokens, seed and metrics;
their fingerprint is null where the model could not be loaded, and k, architecture and d_in are null
where layers differ.  `centre_input` is true where the dictionaries were trained on a stream without
its mean over dimensions (see `Dictionary.centre_input`).
"""

from pathlib import Path
from typing import Any

from saekit.errors import FormatError
from saekit.files import read_json, write_json
from saekit.version import __version__

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_REQUIRED = ("model", "fingerprint", "prepend_bos", "layers", "folders", "d_sae")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a dictionary set.

    Args:
        path: the set's folder.

    Raises:
        FormatError: no dictionary set there, a broken manifest, or an unknown version.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise FormatError(
            f"{folder} is not a dictionary set: it has no {MANIFEST}; train one with saekit train."
        )
    manifest = read_json(folder / MANIFEST, SCHEMA_VERSION)
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise FormatError(f"{folder / MANIFEST} lacks {', '.join(missing)}.")
    return manifest


def write_manifest(path: str | Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, putting versions in front."""
    versions = {"schema_version": SCHEMA_VERSION, "saekit": __version__}
    write_json(Path(path) / MANIFEST, {**versions, **manifest, **versions})
