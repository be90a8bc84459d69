"""A small dictionary set for the viewer: a stored circuit, an index, no concepts."""

import json
from pathlib import Path

import pytest

from tests.unit.report.samples import document

VIEWER = str(Path(__file__).parents[2] / "app" / "viewer.py")


@pytest.fixture(scope="session")
def viewed_set(tiny_model, tiny_model_folder, tmp_path_factory) -> Path:
    import torch

    from saekit.coordinates import hook_name
    from saekit.features.index.build import build_index
    from saekit.sae.dictionary import Dictionary
    from saekit.sae.storage.dictionary_set import DictionarySet

    torch.manual_seed(0)
    parts = {}
    for layer in range(tiny_model.n_layers + 1):
        W = torch.nn.functional.normalize(torch.randn(64, tiny_model.d_model), dim=-1)
        parts[layer] = Dictionary(
            layer,
            "topk",
            W.T.contiguous(),
            torch.zeros(64),
            W,
            torch.zeros(tiny_model.d_model),
            k=4,
        )
    folder = tmp_path_factory.mktemp("sets") / "tiny"
    manifest = {
        "model": str(tiny_model_folder), "fingerprint": tiny_model.fingerprint, "prepend_bos": True,
        "layers": list(parts), "d_sae": 64,
        "folders": {str(n): hook_name(n, tiny_model.n_layers) for n in parts},
    }  # fmt: skip
    dictionaries = DictionarySet(parts, manifest, folder)
    dictionaries.save(folder)
    sentences = ['The opposite of "large" is "small".'] * 60
    build_index(tiny_model, dictionaries, sentences, folder / "index.h5", tokens=400, context=32)
    (folder / "circuits").mkdir()
    for name, values in (
        ("seed", document()),
        ("other", document(["The", " opposite", " of", ' "', "small", '"', " is", ' "'])),
    ):
        text = json.dumps({**values, "fingerprint": tiny_model.fingerprint})
        (folder / "circuits" / f"{name}.json").write_text(text, encoding="utf-8")
    return folder
