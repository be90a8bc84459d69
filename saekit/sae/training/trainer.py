"""Train the dictionaries of all layers at once, from one stream of shuffled activations.

One model pass feeds every layer.  Out come a dictionary set (SAELens folders and a manifest),
`metrics.jsonl`, and while it runs `training/checkpoint.json` with its tensors (checkpoint.py).
"""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch

from saekit.activations import (
    ActivationSource,
    ModelActivations,
    ShuffleBuffer,
    Text,
    check_layers,
)
from saekit.coordinates import hook_name
from saekit.errors import InputError, MismatchError, SaekitError, TrainingError
from saekit.files import ensure_writable
from saekit.model.loading import LanguageModel, LoadableModel, load_model
from saekit.native.library import keep_freed_memory
from saekit.sae.storage.describing import manifest_of, saelens_metadata
from saekit.sae.storage.dictionary_set import (
    DictionarySet,
    save_dictionary,
)
from saekit.sae.storage.manifest import MANIFEST, write_manifest
from saekit.sae.training import checkpoint, metrics
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.distributed import SharedActivations, World
from saekit.sae.training.layer import LayerTraining
from saekit.sae.training.operands import Scratch
from saekit.sae.training.progress import Progress
from saekit.sae.training.stopping import StopSignal

logger = logging.getLogger(__name__)
WORK = "training"
_LOG_STEPS = 10
_CHECKPOINT_SECONDS = 600.0  # at most (and a few steps) is lost where tokens take long


def _prepare(out: Path, resume: bool) -> Path:
    """The work folder, after checking that nothing valuable would be overwritten."""
    work = out / WORK
    if not resume:
        found = [p for p in (out / MANIFEST, work / checkpoint.CHECKPOINT) if p.exists()]
        if found:
            raise InputError(
                f"{found[0]} is there already: continue that run with --resume, "
                "or choose another --out folder."
            )
    return ensure_writable(work)


def _finished(
    model: LanguageModel, config: TrainConfig, out: Path, text_name: str
) -> DictionarySet:
    """The set that a completed run left in `out`, if it is the one asked for."""
    finished = DictionarySet.load(out)
    finished.check_model(model)
    changed = config.differences(finished.manifest.get("training", {}))
    changed += checkpoint.other_input(finished.manifest, model.prepend_bos, text_name)
    if changed:
        raise MismatchError(
            f"The training in {out} is complete and had other settings ({'; '.join(changed)}); "
            "choose another --out folder."
        )
    logger.warning("the training in %s is complete: nothing to resume", out)
    return finished


@contextmanager
def _before(step: int) -> Iterator[None]:
    """Names the step in errors of the activations that it needs."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"Before step {step}: {error}") from error


def train(
    model: LoadableModel,
    text: Text | ActivationSource,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.float32,
    text_name: str = "",
    sinks: Sequence[metrics.Sink] = (),
    world: World | None = None,
) -> DictionarySet:
    """Train one dictionary per layer and save the set.

    Args:
        model: the model, or what `load_model` opens (its device is used).
        text: documents, `Path`s, or a function that returns documents (see
            `saekit.activations.documents_of`), walked again when it ends before the training
            does; or a source of activations of the wanted layers, such as an opened cache.
        config: settings; the defaults if None.
        out: folder of the dictionary set; None trains in a temporary folder and keeps the set in
            memory only (`DictionarySet.save` writes it).
        resume: continue the run found in `out` (needs the same text); a finished one is returned.
        dtype: how matrices are stored, `torch.float16` for shipping.
        text_name: what the text is, in words, for the manifest.
        sinks: where figures go beside `metrics.jsonl`.
        world: the processes that train together (distributed.join); by default one.

    Returns:
        The saved set.

    Raises:
        InputError: impossible settings, no text, a folder that cannot be written, a full disk.
        TrainingError: values that are not finite, or text that ended; checkpoints are intact.
        MismatchError: `resume` with another model or other settings.
        Stopped: SIGTERM or SIGINT came; a checkpoint of the last step was written.
    """
    model, config = load_model(model), config or TrainConfig()
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return train(
                model, text, config, Path(folder) / "set", False, dtype, text_name, sinks, world
            )
    config.check()
    run = Run(model, text, config, Path(out), dtype, text_name, sinks, world or World())
    return run.start(resume)


class Run:
    """One training, in one of the processes that share it.  See `train`."""

    def __init__(
        self,
        model: LanguageModel,
        text: Text | ActivationSource,
        config: TrainConfig,
        out: Path,
        dtype: torch.dtype,
        text_name: str,
        sinks: Sequence[metrics.Sink],
        world: World,
    ):
        self.model, self.config, self.out, self.world = model, config, out, world
        self.dtype, self.text_name, self.sinks = dtype, text_name, list(sinks)
        self.all_layers = check_layers(model, config.layers)
        if world.size > len(self.all_layers):
            raise InputError(
                f"{world.size} processes cannot share {len(self.all_layers)} layers: start at most "
                "one per layer."
            )
        if wrong := sorted(set(config.per_layer) - set(self.all_layers)):
            raise InputError(f"Layer {wrong[0]} has settings of its own but is not trained.")
        self.text, self.step, self._saved = text, 0, time.monotonic()

    def start(self, resume: bool) -> DictionarySet:
        """Prepare, train, save."""
        keep_freed_memory()
        failure, work = None, self.out / WORK
        if self.world.is_first:
            try:
                _prepare(self.out, resume)
            except SaekitError as error:
                failure = error
        self.world.check(failure)
        if resume and (self.out / MANIFEST).exists():
            return _finished(self.model, self.config, self.out, self.text_name)
        self.buffer = self._open_buffer()
        scratch, device = Scratch(self.model.device), self.model.device
        self.layers = [
            LayerTraining(layer, self.model.d_model, self.config, device, scratch)
            for layer in self.buffer.layers
        ]
        self.work = work
        self._find_start(resume)
        if self.world.is_first:
            metrics.keep_lines(self.out / metrics.METRICS, self.step)
            self.sinks.insert(0, metrics.jsonl_sink(self.out / metrics.METRICS))
        last = self._loop()
        return self._save(last)

    def _open_buffer(self) -> ShuffleBuffer:
        config = self.config
        if hasattr(self.text, "next_pass"):
            source = cast(ActivationSource, self.text)
            wanted = self.world.own(self.all_layers)
            if list(source.layers) != wanted:
                raise InputError(
                    f"The activations are of layers {list(source.layers)}; {wanted} are wanted."
                )
        else:
            text = cast(Text, self.text)
            source = ModelActivations(
                self.model, text, self.all_layers, config.context, config.bf16
            )
            if self.world.size > 1:
                source = SharedActivations(source, self.world)
        kept = torch.bfloat16 if config.bf16 else torch.float32
        return ShuffleBuffer(
            source, config.batch_tokens, config.buffer_tokens, config.seed, kept,
            tokens=config.steps * config.batch_tokens,
        )  # fmt: skip

    def _find_start(self, resume: bool) -> None:
        """Continue from the checkpoint, or measure the input and begin."""
        found = None
        if resume:
            found = checkpoint.read_checkpoint(
                self.work, self.config, self.model, self.text_name, len(self.buffer.state())
            )
            if found is None:
                logger.warning("%s holds no checkpoint: starting from the beginning", self.work)
        if found is None:
            with _before(1):
                self.buffer.fill()
            for slot, training in enumerate(self.layers):
                training.fit_input(self.buffer.held(slot))
            return
        place = checkpoint.load_layers(self.work, found, self.layers)
        self.buffer.load_state(place.position)
        self.step = place.step
        logger.info("continuing at step %d of %d", self.step, self.config.steps)

    def _loop(self) -> dict[int, dict[str, float]]:
        """All steps; returns the last figures of all layers."""
        config = self.config
        figures, last = metrics.Figures(len(self.layers), self.model.device), {}
        x = self.buffer.buffer.new_empty(config.batch_tokens, self.model.d_model)
        progress = Progress(config, self.step, self.all_layers, show=self.world.is_first)
        with progress, StopSignal() as stop:
            while self.step < config.steps:
                self._one_step(x, figures)
                progress.advance(config.batch_tokens)
                if self.step == config.steps:  # nothing is left to stop: the set is saved
                    return self._log(figures, progress)
                saving, stopping = self._due(stop)
                # figures are looked at before their weights are saved
                if saving or stopping or self.step % _LOG_STEPS == 0 or self.step == 1:
                    last = self._log(figures, progress)
                if saving or stopping:
                    self._checkpoint()
                if stopping:
                    stop.leave(self.step, config.steps)
        return last

    def _due(self, stop: StopSignal) -> tuple[bool, bool]:
        """Whether to save a checkpoint and whether to end the run, alike in all processes.

        A signal comes to each process at a step of its own, and clocks differ: processes that
        train together ask each other at every log line.
        """
        saving, stopping = self._crosses(self.config.checkpoint_tokens), stop.came
        at_line = self.step % _LOG_STEPS == 0
        if at_line:
            late = time.monotonic() - self._saved > _CHECKPOINT_SECONDS
            saving |= self.world.any(late)
        if self.world.size > 1:
            stopping = at_line and self.world.any(stopping)
        return saving, stopping

    def _one_step(self, x: torch.Tensor, figures: metrics.Figures) -> None:
        config, step = self.config, self.step
        with _before(step + 1):
            places = self.buffer.next_batch()
        factor, sparsity = config.schedule(step), config.sparsity_schedule(step)
        decaying = config.decay > 0 and step >= (1 - config.decay) * config.steps
        counting = decaying or config.decay == 0
        resampling = not decaying and self._crosses(config.dead_tokens)
        for slot, training in enumerate(self.layers):
            self.buffer.layer(slot, places, out=x)
            figures.add(slot, training.step(x, factor, sparsity, count=counting))
            if resampling:
                training.resample(self.buffer.layer(slot, places), seed=step)
        self.step += 1
        figures.count(config.batch_tokens)

    def _crosses(self, every: int) -> bool:
        """Whether the tokens seen so far passed a multiple of `every` in the last step."""
        batch = self.config.batch_tokens
        return self.step * batch // every > (self.step - 1) * batch // every

    def _log(self, figures: metrics.Figures, progress: Progress) -> dict[int, dict[str, float]]:
        own = figures.means(self.layers)
        found: dict[int, dict[str, float]] = {}
        for part in self.world.gather(own):
            found |= part
        found = dict(sorted(found.items()))
        metrics.check_finite(found, self.step)
        if self.world.is_first:
            rate = self.config.lr * self.config.schedule(self.step - 1)
            tokens = self.step * self.config.batch_tokens
            line = metrics.log_line(self.step, tokens, rate, found)
            for sink in self.sinks:
                sink(line)
            progress.figures(found)
        return found

    def _checkpoint(self) -> None:
        failure = None
        try:
            checkpoint.save_layers(self.work, self.layers, self.step, self.world.rank)
        except SaekitError as error:
            failure = error
        self.world.check(failure)
        if self.world.is_first:
            place = checkpoint.RunPlace(self.step, self.buffer.state())
            owners = self.world.owners(self.all_layers)
            checkpoint.commit(self.work, place, owners, self.config, self.model, self.text_name)
        self.world.check(None)
        self._saved = time.monotonic()

    def _save(self, last: dict[int, dict[str, float]]) -> DictionarySet:
        """Save the set, then remove the checkpoint."""
        own = {
            t.layer: t.dictionary(saelens_metadata(self.model, t.layer, self.config))
            for t in self.layers
        }
        silent = {t.layer: t.never_active_share.item() for t in self.layers}
        folders = {layer: hook_name(layer, self.model.n_layers) for layer in self.all_layers}
        failure = None
        try:
            if self.world.is_first:
                (self.out / MANIFEST).unlink(missing_ok=True)
            for layer, dictionary in own.items():
                save_dictionary(self.out / folders[layer], dictionary, self.dtype)
        except SaekitError as error:
            failure = error
        self.world.check(failure)
        for part in self.world.gather(silent):
            for layer, share in part.items():
                kept = {name: last[layer][name] for name in ("fvu", "l0", "dead_share")}
                last[layer] = {**kept, "never_active_share": share}
        if self.world.is_first:
            write_manifest(
                self.out, manifest_of(self.model, self.config, folders, last, self.text_name)
            )
            checkpoint.remove_checkpoint(self.work)
        self.world.check(None)
        return DictionarySet.load(self.out)
