"""Checkpoints of a dictionary training: one safetensors file, replaced atomically.

It holds every layer's weights, Adam moments and counters, and the position in the data; the
configuration and the model's fingerprint are in its metadata.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from saekit.activations import ShuffledActivations
from saekit.errors import FormatError, MismatchError
from saekit.sae.config import TrainConfig
from saekit.sae.layer import LayerTraining
from saekit.sae.storage import load_tensors, save_tensors

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path,
    layers: Sequence[LayerTraining],
    stream: ShuffledActivations,
    step: int,
    config: TrainConfig,
    fingerprint: str,
) -> None:
    """Write `folder/checkpoint.safetensors`; the file before it stays until the new one is whole.

    Raises:
        InputError: the disk is full.
    """
    position = [step, stream.fill_number, stream.first_row, stream.batch]
    tensors = {"position": torch.tensor(position)}
    for training in layers:
        tensors |= {f"{training.layer}/{k}": v for k, v in training.state().items()}
    metadata = {"config": json.dumps(asdict(config)), "fingerprint": fingerprint}
    save_tensors(folder / CHECKPOINT, tensors, metadata)


def load_checkpoint(
    folder: Path,
    layers: Sequence[LayerTraining],
    stream: ShuffledActivations,
    config: TrainConfig,
    fingerprint: str,
) -> int:
    """Continue from the checkpoint in `folder`; returns the number of steps made.

    Raises:
        FormatError: the file is broken.
        MismatchError: another model, or settings that would change the result.
    """
    path = folder / CHECKPOINT
    tensors, metadata = load_tensors(path)
    if metadata.get("fingerprint") != fingerprint:
        raise MismatchError(
            f"{path} was made with a model of fingerprint {metadata.get('fingerprint')}; "
            f"this one has {fingerprint}."
        )
    changed = config.differences(json.loads(metadata.get("config", "{}")))
    if changed:
        raise MismatchError(
            f"{path} was made with other settings ({'; '.join(changed)}); "
            "resume with the same ones, or start in another folder."
        )
    try:
        for training in layers:
            prefix = f"{training.layer}/"
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            training.load_state(own)
        step, fill_number, first_row, batch = tensors["position"].tolist()
    except KeyError as error:
        raise FormatError(f"{path} lacks the tensor {error}; delete it to start again.") from error
    stream.skip_to(fill_number, first_row, batch)
    return step
