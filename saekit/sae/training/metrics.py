"""Figures of a running training: summed on the device, written to files, shown to people.

`metrics.jsonl` is always written, one line per log interval: step, tokens, lr, layers, and per
layer fvu, l0, dead_share, aux_loss.  TensorBoard and Weights & Biases get the same on request.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saekit.errors import InputError, TrainingError
from saekit.files import ensure_writable, write_text
from saekit.sae.training.layer import LayerTraining
from saekit.sae.training.step import StepResult

METRICS = "metrics.jsonl"
FIGURES = ("fvu", "l0", "dead_share", "aux_loss")
Sink = Callable[[dict[str, Any]], None]
"""Takes one line of `metrics.jsonl` as a dictionary."""


class Figures:
    """FVU, L0 and auxiliary loss per layer, summed on the device between two log lines."""

    def __init__(self, n_layers: int, device: torch.device):
        self.sums = torch.zeros(3, n_layers, device=device)
        self.tokens = self.steps = 0

    def add(self, slot: int, result: StepResult) -> None:
        """Add what a step of one layer gave."""
        parts = [result.squared_error.float(), result.fired.sum().float(), result.extra.float()]
        self.sums[:, slot] += torch.stack(parts)

    def count(self, tokens: int) -> None:
        """A step of all layers is complete."""
        self.tokens += tokens
        self.steps += 1

    def means(self, layers: Sequence[LayerTraining]) -> dict[int, dict[str, float]]:
        """Means since the last call, by layer; starts over."""
        variance = torch.stack([layer.variance for layer in layers]).clamp_min(1e-30)
        rows = torch.stack(
            [
                self.sums[0] / self.tokens / variance,
                self.sums[1] / self.tokens,
                torch.stack([layer.dead_share for layer in layers]),
                self.sums[2] / self.steps,
            ]
        )
        self.sums.zero_()
        self.tokens = self.steps = 0
        return {
            layer.layer: dict(zip(FIGURES, column, strict=True))
            for layer, column in zip(layers, rows.T.tolist(), strict=True)
        }


def log_line(
    step: int, tokens: int, lr: float, figures: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    """One line of `metrics.jsonl`: figures by name, each a list over layers."""
    layers = sorted(figures)
    columns = {name: [figures[layer][name] for layer in layers] for name in FIGURES}
    return {"step": step, "tokens": tokens, "lr": lr, "layers": layers, **columns}


def check_finite(figures: Mapping[int, Mapping[str, float]], step: int) -> None:
    """Stop before a loss that is not finite reaches a checkpoint.

    Raises:
        TrainingError: layer, value and step.
    """
    for layer, row in figures.items():
        if not row["fvu"] < float("inf"):  # false for NaN too
            raise TrainingError(
                f"The loss of layer {layer} is {row['fvu']} at step {step}; earlier checkpoints "
                "are intact: lower the learning rate (or sparsity), in another --out folder."
            )


def keep_lines(path: Path, step: int) -> None:
    """Drop the metrics that a killed run wrote after its last checkpoint."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite for what a kill cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def jsonl_sink(path: Path) -> Sink:
    """Appends lines to a file."""

    def write(line: dict[str, Any]) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise TrainingError(
                f"Cannot write {path.name} ({error.strerror}); the checkpoint is intact, "
                "continue with --resume when there is space."
            ) from error

    return write


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    named = {"lr": line["lr"]}
    for name in FIGURES:
        for layer, value in zip(line["layers"], line[name], strict=True):
            named[f"{name}/layer_{layer:02d}"] = value
    return named


def tensorboard_sink(folder: Path) -> Sink:
    """Writes TensorBoard event files.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed: pip install tensorboard.") from error
    writer = SummaryWriter(str(ensure_writable(folder)))

    def write(line: dict[str, Any]) -> None:
        for name, value in _scalars(line).items():
            writer.add_scalar(name, value, line["tokens"])
        writer.flush()

    return write


def wandb_sink(project: str, config: dict[str, Any]) -> Sink:
    """Sends lines to Weights & Biases (mode and account as its environment variables say).

    Raises:
        InputError: wandb is not installed, has no account, or cannot be reached.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("Weights & Biases is not installed: pip install wandb.") from error
    try:
        run = wandb.init(project=project, config=config)
    except wandb.Error as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"Weights & Biases cannot be used ({reason}): set WANDB_MODE=offline to log locally."
        ) from error
    return lambda line: run.log({"tokens": line["tokens"], **_scalars(line)}, step=line["step"])
