"""Checkpoints of a dictionary training: what is on disk is always one whole state.

    training/step-00000100-0.safetensors    the layers that process 0 trains: parameters, Adam
    training/step-00000100-1.safetensors    moments and counters, named `layer/...`
    training/checkpoint.json                which files belong together, the place in the data,
                                            the configuration, the model's fingerprint

The tensor files of a step are written under new names; then checkpoint.json is replaced
atomically; then older files are removed.  A run killed at any moment leaves a checkpoint.json
whose files are complete.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from saekit.errors import FormatError, MismatchError
from saekit.files import read_json, write_json
from saekit.model.loading import LanguageModel
from saekit.sae.storage.tensors import load_tensors, save_tensors
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.layer import LayerTraining

CHECKPOINT = "checkpoint.json"
SCHEMA_VERSION = 1
_TENSORS = "step-{step:08d}-{rank}.safetensors"


@dataclass(frozen=True)
class RunPlace:
    """How far a run got.

    Attributes:
        step: optimiser steps made.
        position: of the shuffle buffer (`ShuffleBuffer.state`).
    """

    step: int
    position: list[int]


def save_layers(folder: Path, layers: Sequence[LayerTraining], step: int, rank: int = 0) -> None:
    """Write the layers of one process.

    Raises:
        InputError: the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    for training in layers:
        tensors |= {f"{training.layer}/{k}": v for k, v in training.state().items()}
    save_tensors(folder / _TENSORS.format(step=step, rank=rank), tensors)


def commit(
    folder: Path,
    place: RunPlace,
    owners: Mapping[int, int],
    config: TrainConfig,
    model: LanguageModel,
    text_name: str = "",
) -> None:
    """Make the tensor files of a step the checkpoint, and remove older ones.

    Args:
        folder: where they are.
        place: how far the run got.
        owners: which process wrote each layer.
        config: of the run.
        model: whose stream is learnt.
        text_name: what the text is, in words.

    Raises:
        InputError: the disk is full; the checkpoint before this one is still whole.
    """
    files = {
        str(layer): _TENSORS.format(step=place.step, rank=rank) for layer, rank in owners.items()
    }
    document = {
        "schema_version": SCHEMA_VERSION,
        "step": place.step,
        "position": place.position,
        "files": files,
        "fingerprint": model.fingerprint,
        "prepend_bos": model.prepend_bos,
        "text": text_name,
        "config": config.to_dict(),
    }
    write_json(folder / CHECKPOINT, document)
    _remove_others(folder, set(files.values()))


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Remove tensor files that no checkpoint names, and what a killed writer left."""
    for path in [*folder.glob("step-*.safetensors"), *folder.glob(".*.tmp")]:
        if path.name not in keep:
            with suppress(OSError):
                path.unlink()


def other_input(stored: Mapping[str, Any], prepend_bos: bool, text_name: str) -> list[str]:
    """What was read otherwise than now, by a checkpoint or a manifest; what is unknown is equal."""
    now = {"prepend_bos": prepend_bos, "text": text_name}
    return [
        f"{name} {stored[name]} -> {value}"
        for name, value in now.items()
        if stored.get(name, "") != "" and value != "" and stored[name] != value
    ]


def read_checkpoint(
    folder: Path,
    config: TrainConfig,
    model: LanguageModel,
    text_name: str = "",
    numbers: int | None = None,
) -> dict[str, Any] | None:
    """The newest whole checkpoint, checked against the run to be continued; None if there is none.

    Args:
        folder: where it is.
        config, model, text_name: of the run (see `commit`).
        numbers: how many tell a place in the data; a cache and a text have different ones.

    Raises:
        FormatError: the file is broken.
        MismatchError: another model or text, or settings that would change the result.
    """
    fingerprint = model.fingerprint
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    document = read_json(path, SCHEMA_VERSION)
    if document.get("fingerprint") != fingerprint:
        raise MismatchError(
            f"{path} was made with a model of fingerprint {document.get('fingerprint')}; "
            f"this one has {fingerprint}."
        )
    stored, position = document.get("config"), document.get("position")
    if not isinstance(stored, dict) or not isinstance(position, list):
        raise FormatError(f"{path} is no checkpoint of a training; delete {folder} to start again.")
    changed = config.differences(stored)
    changed += other_input(document, model.prepend_bos, text_name)
    if numbers is not None and len(position) != numbers:
        changed.append("activations from a cache -> from text, or the reverse")
    if changed:
        raise MismatchError(
            f"{path} was made with other settings ({'; '.join(changed)}); "
            "resume with the same ones, or start in another folder."
        )
    return document


def load_layers(
    folder: Path, document: dict[str, Any], layers: Sequence[LayerTraining]
) -> RunPlace:
    """Put the layers into the state of a checkpoint, whoever wrote them.

    Raises:
        FormatError: a file is missing or broken.
    """
    opened: dict[str, dict[str, Tensor]] = {}
    path = folder / CHECKPOINT
    try:
        for training in layers:
            name = document["files"][str(training.layer)]
            if name not in opened:
                opened = {name: load_tensors(folder / name)[0]}  # one file at a time in memory
            prefix, path = f"{training.layer}/", folder / name
            tensors = opened[name]
            training.load_state(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        return RunPlace(int(document["step"]), [int(n) for n in document["position"]])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"{path} lacks {error}; delete {folder} to start again.") from error


def remove_checkpoint(folder: Path) -> None:
    """After the set is saved: remove the checkpoint, then the folder if nothing else is in it."""
    with suppress(OSError):
        (folder / CHECKPOINT).unlink(missing_ok=True)
        _remove_others(folder, set())
        folder.rmdir()
