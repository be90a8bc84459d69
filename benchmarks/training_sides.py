"""How each library trains on the same task: what `train_throughput.py` runs, one side per process.

A side takes a `Task` and a `Clock`, starts the clock before the first model pass and stops it after
the last optimiser step, and returns for each residual point a function that encodes and decodes.
Setting up models and dictionaries, compiling kernels and writing results is outside the clock.
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from saekit.coordinates import hook_name
from saekit.model.loading import LanguageModel
from saekit.sae.kernels import kernels_for
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.trainer import Run

Rebuild = Callable[[Tensor], Tensor]
NEVER = 10**9  # steps until something that a benchmark does not want


@dataclass(frozen=True)
class Task:
    """What every side trains: one TopK dictionary per residual point.

    Attributes:
        hf: the model, in float32 on the device.
        rows: token ids [row, context].
        bos: the id that begins rows and is no training token; None if rows are tokens only.
        narrow: whether the model and products may be bfloat16 (see `train_throughput.py`).
        warmup, decay: shares of the steps in which the learning rate rises and falls.
    """

    hf: GPT2LMHeadModel
    rows: Tensor
    bos: int | None
    d_sae: int
    k: int
    tokens: int
    batch_tokens: int
    buffer_tokens: int
    lr: float
    narrow: bool
    warmup: float = 0.0
    decay: float = 0.0

    @property
    def points(self) -> list[str]:
        """Hook points of the stream, in order."""
        layers = self.hf.config.n_layer
        return [hook_name(layer, layers) for layer in range(layers + 1)]

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_tokens

    def share_of_steps(self, share: float) -> int:
        """Steps of a schedule's part; SAELens cannot warm up in one step."""
        steps = int(share * self.steps)
        return steps if steps > 1 else 0


@dataclass
class Clock:
    """Wall and processor seconds and peak memory between `start` and `stop`."""

    device: torch.device
    figures: dict[str, float] = field(default_factory=dict)

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.started = self._now()

    def stop(self) -> None:
        wall, processor = self._now()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.figures = {
            "wall_s": wall - self.started[0],
            "cpu_s": processor - self.started[1],
            "peak_memory_gb": peak,
        }
        if self.device.type == "cuda":
            self.figures["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30


class _Timed(Run):
    """`saekit.train` with a clock around its loop, and without the files of its result."""

    clock: Clock

    def _find_start(self, resume: bool) -> None:
        self.clock.start()
        super()._find_start(resume)  # fills the buffer, measures the input

    def _loop(self) -> Any:
        last = super()._loop()
        self.clock.stop()
        return last

    def _save(self, last: Any) -> Any:
        return [layer.dictionary({}) for layer in self.layers]


def run_saekit(task: Task, clock: Clock, folder: Path) -> list[Rebuild]:
    """saekit."""
    from saekit.sae.training.distributed import World

    kernels_for(clock.device)  # compiles on first use

    class Ids:
        bos_token_id = 0 if task.bos is None else task.bos

    model = LanguageModel("benchmark", task.hf, Ids(), prepend_bos=task.bos is not None)
    config = TrainConfig(
        d_sae=task.d_sae, k=task.k, tokens=task.tokens, context=task.rows.shape[1], lr=task.lr,
        batch_tokens=task.batch_tokens, buffer_tokens=task.buffer_tokens, bf16=task.narrow,
        warmup=task.warmup, decay=task.decay, checkpoint_tokens=NEVER,
    )  # fmt: skip
    config.check()
    documents = [task.rows.flatten().numpy().astype(np.int64)]
    run = _Timed(model, documents, config, folder / "set", torch.float32, "", (), World())
    run.clock = clock
    dictionaries: Any = run.start(resume=False)
    return [lambda x, d=d: d.decode(d.encode(x)) for d in dictionaries]


def hooked(hf: GPT2LMHeadModel, context: int) -> Any:
    """The same weights as a HookedTransformer, which SAELens runs."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

    config, device = hf.config, hf.transformer.wte.weight.device
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=config.n_layer, d_model=config.n_embd, n_ctx=context, n_heads=config.n_head,
            d_head=config.n_embd // config.n_head, d_vocab=config.vocab_size, act_fn="gelu_new",
            eps=config.layer_norm_epsilon, normalization_type="LN", device=str(device),
        )
    )  # fmt: skip
    model.load_state_dict(convert_gpt2_weights(hf, model.cfg), strict=False)
    return model.eval()


def run_saelens(task: Task, clock: Clock, folder: Path) -> list[Rebuild]:
    """SAELens' MultiSAETrainingRunner."""
    from datasets import Dataset
    from sae_lens import LoggingConfig
    from sae_lens.multi_sae_training_runner import (
        MultiSAETrainingRunner,
        MultiSAETrainingRunnerConfig,
    )
    from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

    torch.manual_seed(0)
    context, d_in = task.rows.shape[1], task.hf.config.n_embd
    names = {point.replace(".", "_"): point for point in task.points}
    device, on_gpu = str(clock.device), clock.device.type == "cuda"
    config = MultiSAETrainingRunnerConfig(
        saes={
            name: TopKTrainingSAEConfig(d_in=d_in, d_sae=task.d_sae, k=task.k, device=device)
            for name in names
        },
        hook_names=names,
        model_name="benchmark",
        context_size=context,
        # counted in contexts; the default holds less than a batch and is refused
        n_batches_in_buffer=task.buffer_tokens // context,
        store_batch_size_prompts=max(1, task.batch_tokens // context),
        training_tokens=task.tokens,
        train_batch_size_tokens=task.batch_tokens,
        lr=task.lr,
        lr_warm_up_steps=task.share_of_steps(task.warmup),
        lr_decay_steps=task.share_of_steps(task.decay),
        prepend_bos=task.bos is not None,
        exclude_special_tokens=False if task.bos is None else [task.bos],
        streaming=False,
        device=device,
        autocast=on_gpu and task.narrow,
        autocast_lm=on_gpu and task.narrow,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
    )  # fmt: skip
    dataset = Dataset.from_dict({"tokens": task.rows.tolist()})
    model = hooked(task.hf, context)
    runner = MultiSAETrainingRunner(config, override_dataset=dataset, override_model=model)
    clock.start()
    saes = runner.run()
    clock.stop()
    return [lambda x, sae=saes[name]: sae.decode(sae.encode(x)) for name in names]


def run_sparsify(task: Task, clock: Clock, folder: Path) -> list[Rebuild]:
    """EleutherAI's sparsify."""
    if clock.device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # it takes an installed Triton for a GPU
    with redirect_stdout(sys.stderr):
        from datasets import Dataset
        from sparsify import SaeConfig, Trainer
        from sparsify import TrainConfig as SparsifyConfig

    class Quiet(Trainer):
        def save(self) -> None:
            """Nothing is kept."""

    context = task.rows.shape[1]
    contexts = max(1, round(task.batch_tokens / (context - (task.bos is not None))))
    if task.bos is None:
        rows = task.rows[: task.steps * contexts]
    else:  # until there are as many tokens that are not BOS
        counted = (task.rows != task.bos).sum(1).cumsum(0)
        needed = int((counted < task.tokens).sum()) + 1
        rows = task.rows[: -(-needed // contexts) * contexts]
    layers = task.hf.config.n_layer
    # the stream after "drop" is that before block 0
    points = ["drop", *(f"h.{layer}" for layer in range(layers))]
    config = SparsifyConfig(
        SaeConfig(num_latents=task.d_sae, k=task.k),
        batch_size=contexts,
        optimizer="adam",
        lr=task.lr,
        lr_warmup_steps=task.share_of_steps(task.warmup),
        hookpoints=points,
        exclude_tokens=[] if task.bos is None else [task.bos],
        save_every=NEVER,
        log_to_wandb=False,
        save_dir=str(folder),
    )
    model = task.hf.transformer
    if clock.device.type == "cuda" and task.narrow:
        model = model.bfloat16()
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    trainer = Quiet(config, dataset, model)
    clock.start()
    trainer.fit()
    clock.stop()

    def rebuild(x: Tensor, coder: Any) -> Tensor:
        found = coder.encode(x)
        return coder.decode(found.top_acts, found.top_indices)

    return [lambda x, coder=trainer.saes[point]: rebuild(x, coder) for point in points]


SIDES = {"saekit": run_saekit, "saelens": run_saelens, "sparsify": run_sparsify}
