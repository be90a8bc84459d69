"""Train the dictionaries of all layers at once, from one stream of shuffled activations.

One model pass feeds every layer.  Out come a dictionary set (SAELens folders and a manifest),
`metrics.jsonl`, and while it runs `training/checkpoint.safetensors`.
"""

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import ShuffledActivations, Text, check_layers
from saekit.coordinates import hook_name
from saekit.errors import InputError, MismatchError, TrainingError
from saekit.files import ensure_writable, write_text
from saekit.model.loading import LanguageModel, LoadableModel, load_model
from saekit.sae.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from saekit.sae.config import TrainConfig
from saekit.sae.layer import LayerTraining
from saekit.sae.manifest import MANIFEST
from saekit.sae.storage import SAE_LENS_VERSION, DictionarySet

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
WORK = "training"
_LOG_STEPS = 10


class _Figures:
    """FVU, L0 and auxiliary loss per layer, summed on the device between two log lines."""

    def __init__(self, n_layers: int, device: torch.device):
        self.sums = torch.zeros(3, n_layers, device=device)
        self.tokens = 0

    def add(self, slot: int, squared_error: Tensor, active: Tensor, aux_loss: Tensor) -> None:
        self.sums[:, slot] += torch.stack([squared_error, active, aux_loss])

    def means(self, layers: list[LayerTraining], steps: int) -> dict[str, list[float]]:
        """Means since the last call."""
        variance = torch.stack([layer.variance for layer in layers]).clamp_min(1e-30)
        dead = torch.stack([layer.dead_share for layer in layers])
        rows = {
            "fvu": self.sums[0] / self.tokens / variance,
            "l0": self.sums[1] / self.tokens,
            "dead_share": dead,
            "aux_loss": self.sums[2] / steps,
        }
        self.sums.zero_()
        self.tokens = 0
        return {name: values.tolist() for name, values in rows.items()}


def _prepare(out: Path, resume: bool) -> Path:
    """The work folder, after checking that nothing valuable would be overwritten."""
    work = out / WORK
    if not resume:
        found = next((p for p in (out / MANIFEST, work / CHECKPOINT) if p.exists()), None)
        if found:
            raise InputError(
                f"{found} is there already: continue that run with --resume, "
                "or choose another --out folder."
            )
    ensure_writable(work)
    for leftover in work.glob(f".{CHECKPOINT}.*.tmp"):  # of a run that was killed while writing
        leftover.unlink()
    return work


def _finished(model: LanguageModel, config: TrainConfig, out: Path) -> DictionarySet:
    """The set that a completed run left in `out`, if it is the one asked for."""
    finished = DictionarySet.load(out)
    finished.check_model(model)
    changed = config.differences(finished.manifest.get("training", {}))
    if changed:
        raise MismatchError(
            f"The training in {out} is complete and had other settings ({'; '.join(changed)}); "
            "choose another --out folder."
        )
    return finished


def _keep_lines(path: Path, step: int) -> None:
    """Drop the metrics that a killed run wrote after its last checkpoint."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))


def _metadata(model: LanguageModel, layer: int, config: TrainConfig) -> dict[str, Any]:
    return {
        "sae_lens_version": SAE_LENS_VERSION,
        "model_name": model.id,
        "hook_name": hook_name(layer, model.n_layers),
        "hook_head_index": None,
        "context_size": config.context,
        "prepend_bos": model.prepend_bos,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {"fold_ln": False, "center_writing_weights": False},
        "exclude_special_tokens": [model.bos],
        "model_fingerprint": model.fingerprint,
    }


def train(
    model: LoadableModel,
    text: Text,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.float32,
    text_name: str = "",
) -> DictionarySet:
    """Train one TopK dictionary per layer and save the set.

    Args:
        model: the model, or what `load_model` opens (its device is used).
        text: documents, `Path`s, or a function that returns documents (see
            `saekit.activations.open_text`); walked again when it ends before the training does.
        config: settings; the defaults if None.
        out: folder of the dictionary set; None trains in a temporary folder and keeps the set in
            memory only (`DictionarySet.save` writes it).
        resume: continue the run found in `out` (needs the same text); a finished one is returned.
        dtype: how matrices are stored, `torch.float16` for shipping.
        text_name: what the text is, in words, for the manifest.

    Returns:
        The saved set.

    Raises:
        InputError: impossible settings, no text, a folder that cannot be written, a full disk.
        TrainingError: values that are not finite, or text that ended; checkpoints are intact.
        MismatchError: `resume` with another model or other settings.
    """
    model, config = load_model(model), config or TrainConfig()
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return train(model, text, config, Path(folder) / "set", False, dtype, text_name)
    config.check()
    wanted = check_layers(model, config.layers)
    out = Path(out)
    work = _prepare(out, resume)
    if resume and (out / MANIFEST).exists():
        return _finished(model, config, out)

    stream = ShuffledActivations(
        model, text, wanted, config.context, config.batch_tokens, config.buffer_tokens,
        config.seed, config.bf16,
    )  # fmt: skip
    layers = [LayerTraining(layer, model.d_model, config, model.device) for layer in wanted]
    step = 0
    if resume and (work / CHECKPOINT).exists():
        step = load_checkpoint(work, layers, stream, config, model.fingerprint)
        logger.info("continuing at step %d of %d", step, config.steps)
    else:
        stream.fill()
        for slot, training in enumerate(layers):
            training.fit_input(stream.buffer[slot, : stream.served])
    _keep_lines(out / METRICS, step)

    last: dict[str, list[float]] = {}
    figures = _Figures(len(layers), model.device)
    batch_tokens, size = config.batch_tokens, (config.batch_tokens, config.d_sae)
    # fresh memory for this product costs more than the product: allocate it once
    pre_dtype = torch.bfloat16 if config.bf16 else torch.float32
    pre = torch.empty(size, dtype=pre_dtype, device=model.device)
    x = torch.empty(batch_tokens, model.d_model, device=model.device)
    first_step, last_logged = step, step
    decay_from = (1 - config.decay) * config.steps
    bar = tqdm(
        total=config.steps * batch_tokens, initial=step * batch_tokens, unit=" tokens",
        unit_scale=True, desc=f"training {len(layers)} dictionaries", mininterval=0.5,
    )  # fmt: skip
    with bar, (out / METRICS).open("a", encoding="utf-8") as log:
        while step < config.steps:
            places = stream.next_batch()
            rate = config.rate(step)
            for slot, training in enumerate(layers):
                stream.layer(slot, places, out=x)
                result = training.step(x, rate, count=step >= decay_from, pre=pre)
                active = (result.values > 0).sum()
                figures.add(slot, result.squared_error, active, result.aux_loss)
            step += 1
            figures.tokens += batch_tokens
            bar.update(batch_tokens)
            saving = _crosses(step, batch_tokens, config.checkpoint_tokens)
            if saving or step % _LOG_STEPS == 0 or step in (first_step + 1, config.steps):
                last = figures.means(layers, step - last_logged)
                last_logged = step
                _check_finite(last["fvu"], wanted, step)
                line = {"step": step, "tokens": step * batch_tokens, "lr": rate, "layers": wanted}
                _append(log, {**line, **last})
                bar.set_postfix_str(
                    f"FVU {_mean(last['fvu']):.3f} (worst {max(last['fvu']):.3f}), "
                    f"L0 {_mean(last['l0']):.1f}, dead {_mean(last['dead_share']):.1%}"
                )
            if saving and step < config.steps:
                save_checkpoint(work, layers, stream, step, config, model.fingerprint)

    return _finish(model, layers, config, out, last, dtype, text_name)


def _finish(
    model: LanguageModel,
    layers: list[LayerTraining],
    config: TrainConfig,
    out: Path,
    last: dict[str, list[float]],
    dtype: torch.dtype,
    text_name: str,
) -> DictionarySet:
    """Save the set, then remove the checkpoint."""
    metrics = {
        str(training.layer): {
            **{name: last[name][slot] for name in ("fvu", "l0", "dead_share")},
            "never_active_share": training.never_active_share.item(),
        }
        for slot, training in enumerate(layers)
    }
    manifest = {
        "model": model.id,
        "fingerprint": model.fingerprint,
        "weights": "unprocessed",
        "prepend_bos": model.prepend_bos,
        "layers": [training.layer for training in layers],
        "folders": {str(t.layer): hook_name(t.layer, model.n_layers) for t in layers},
        "architecture": "topk",
        "d_in": model.d_model,
        "d_sae": config.d_sae,
        "k": config.k,
        "training": asdict(config),
        "text": text_name,
        "tokens": config.steps * config.batch_tokens,
        "seed": config.seed,
        "metrics": metrics,
    }
    trained = {t.layer: t.dictionary(_metadata(model, t.layer, config)) for t in layers}
    DictionarySet(trained, manifest, out).save(out, dtype)
    (out / WORK / CHECKPOINT).unlink(missing_ok=True)
    if not any((out / WORK).iterdir()):
        (out / WORK).rmdir()
    return DictionarySet.load(out)


def _crosses(step: int, batch_tokens: int, every: int) -> bool:
    """Whether this step passed a multiple of `every` tokens."""
    return step * batch_tokens // every > (step - 1) * batch_tokens // every


def _check_finite(fvu: list[float], layers: list[int], step: int) -> None:
    for layer, value in zip(layers, fvu, strict=True):
        if not value < float("inf"):  # false for NaN too
            raise TrainingError(
                f"The loss of layer {layer} is {value} at step {step}; earlier checkpoints are "
                "intact: resume with a lower lr."
            )


def _append(log: TextIO, line: dict[str, Any]) -> None:
    try:
        log.write(json.dumps(line) + "\n")
        log.flush()
    except OSError as error:
        raise TrainingError(
            f"Cannot write {METRICS} ({error.strerror}); the checkpoint is intact, "
            "continue with --resume when there is space."
        ) from error


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
