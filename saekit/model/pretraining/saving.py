"""A trained GPT-2 as a Hugging Face folder, with a manifest of what it can do."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from saekit.files import atomic_path, write_json
from saekit.model.loading import load_model
from saekit.model.pretraining.behaviours import loss_per_token, measure_behaviours
from saekit.text import relational
from saekit.text.corpora import prose, read_documents
from saekit.text.tokenizer import BOS
from saekit.version import __version__

SCHEMA_VERSION = 1


def save_model(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> None:
    """Weights in float16, config and tokenizer, so that plain `transformers` opens the folder."""
    state = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # tied to wte
    }
    with atomic_path(out / "model.safetensors") as path:
        save_file(state, path, metadata={"format": "pt"})
    config = model.config.to_dict()
    config.update(dtype="float16", architectures=["GPT2LMHeadModel"])
    config.pop("_attn_implementation", None)
    write_json(out / "config.json", config)
    with atomic_path(out / "tokenizer.json") as path:
        tokenizer.save(str(path))
    special = {"bos_token": BOS, "eos_token": BOS, "unk_token": BOS}
    write_json(out / "tokenizer_config.json", {"tokenizer_class": "GPT2TokenizerFast", **special})


def write_manifest(
    out: Path,
    config: Any,
    progress: dict[str, float],
    corpus: Sequence[Path],
    held_out: Sequence[Path],
) -> dict[str, Any]:
    """Measure the saved model and write `manifest.json` beside its weights.

    The manifest says on what the model was trained, for how long, what it was never shown, and
    the figures, each measured on the stored float16 weights.
    """
    model = load_model(str(out))
    figures: dict[str, float | int] = dict(measure_behaviours(model))
    figures["prose_loss"] = loss_per_token(model, prose(), tokens=30_000)
    if held_out:
        figures["corpus_loss"] = loss_per_token(model, read_documents(held_out), tokens=200_000)
    never = [
        f"{word}|{opposite}|{form}"
        for word, opposite in relational.opposite_pairs()
        for form in relational.FORMS
        if relational.held_out_form(word, opposite, form)
    ]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "saekit": __version__,
        "made_on": time.strftime("%Y-%m-%d"),
        "fingerprint": model.fingerprint,
        "bytes": (out / "model.safetensors").stat().st_size,
        "training": {**asdict(config), **progress},
        "text": {
            "corpus": [path.name for path in corpus],
            "corpus_held_out": [path.name for path in held_out],
            "generated": "saekit.text.relational, all kinds",
        },
        "figures": figures,
        "never_trained_on": {
            "pairs_in_forms": never,
            "names": "pairs of first names for which saekit.text.relational.held_out_names is true",
        },
        "note": "A model organism of known behaviour; none of its figures are GPT-2's.",
    }
    write_json(out / "manifest.json", manifest)
    return manifest
