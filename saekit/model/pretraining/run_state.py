"""The state of a pretraining run on disk: weights, both optimisers, progress, metrics."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from saekit.errors import TrainingError
from saekit.files import atomic_path, write_text

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


def save_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[Optimizer], step: int, tokens: int
) -> None:
    """Write everything that `load_checkpoint` puts back, atomically."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for o, optimizer in enumerate(optimizers):
        for i, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{o}.{i}.{name}"] = torch.as_tensor(value)
    tensors["progress"] = torch.tensor([step, tokens])
    with atomic_path(folder / CHECKPOINT) as path:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]
) -> tuple[int, int]:
    """Steps and tokens done; weights and optimiser states are put in place.

    Raises:
        TrainingError: no checkpoint of a run of these sizes.
    """
    file = folder / CHECKPOINT
    try:
        tensors = load_file(file)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise TrainingError(
            f"{file} does not continue this run ({str(error).splitlines()[0]}): give the sizes "
            "it was started with, or another output folder."
        ) from error
    for o, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{o}."):
                _, _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    step, tokens = tensors["progress"].tolist()
    return step, tokens


def seconds_until(folder: Path, step: int) -> float:
    """Training time of an interrupted run; its metrics after the checkpoint are dropped."""
    path = folder / METRICS
    if not path.exists():
        return 0.0
    kept = []
    for line in path.read_text().splitlines():
        if not line.endswith("}") or json.loads(line)["step"] > step:
            break  # cut off by the interruption, or steps that are repeated now
        kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))
    return json.loads(kept[-1])["seconds"] if kept else 0.0
