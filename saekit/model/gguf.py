"""Models in GGUF files: dequantised once, kept as a folder in the user's cache.

`transformers` reads the file with the package gguf; what is kept is its float32 weights and its
tokenizer in Hugging Face form, under the hash of the file.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saekit.errors import InputError, ModelError
from saekit.model.silence import quiet

READ = ("gpt2", "llama", "qwen2")  # architectures that transformers reads and saekit describes
_READY = "config.json"  # written last


def models_folder() -> Path:
    """Where models that saekit converted are kept.

    Raises:
        InputError: the user has no home folder.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise InputError(
            "There is no home folder to keep models in: set XDG_CACHE_HOME to a folder."
        ) from error
    return base / "saekit" / "models"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from error


def architecture(path: Path) -> str:
    """What kind of model a GGUF file says it holds.

    Raises:
        ModelError: the package gguf is missing, or this is no whole GGUF file.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(
            f"To read {path} saekit needs the package gguf: pip install gguf."
        ) from error
    try:
        field = GGUFReader(path).get_field("general.architecture")
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(f"{path} is not a whole GGUF file ({reason}).") from error
    if field is None:
        raise ModelError(f"{path} does not say what kind of model it holds.")
    return str(field.contents())


def converted(path: Path, folder: Path | None = None) -> Path:
    """The model of a GGUF file as a folder in Hugging Face form, made on first use.

    Args:
        folder: where to keep it; by default in the user's cache, under the hash of the file.

    Raises:
        ModelError: a broken file, or a model of another family (the known ones are named).
        InputError: the cache cannot be written.
    """
    folder = folder or models_folder() / file_hash(path)[:16]
    if (folder / _READY).is_file():
        return folder
    kind = architecture(path)
    if kind not in READ:
        raise ModelError(f"{path} holds a {kind}; saekit reads {', '.join(READ)} from GGUF files.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            made = Path(temporary) / "model"
            _convert(path, made)
            shutil.rmtree(folder, ignore_errors=True)  # what was cut short
            os.replace(made, folder)
    except OSError as error:
        raise InputError(f"Cannot write {folder}: {error.strerror or error}.") from error
    return folder


def _convert(path: Path, folder: Path) -> None:
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, **where
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **where)
            for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
                if hasattr(holder, name):  # the weights are plain from here on
                    delattr(holder, name)
            tokenizer.save_pretrained(folder)
            model.save_pretrained(folder)
    except (ValueError, RuntimeError, KeyError, IndexError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(f"{path} cannot be converted ({reason}).") from error
