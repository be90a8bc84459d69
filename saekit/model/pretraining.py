"""How gpt2-mini is made: a small GPT-2 trained on a corpus and on relational English.

From text to a Hugging Face folder.  Hidden matrices are updated by Muon (Jordan et al. 2024, as
in `torch.optim.Muon`), everything else by AdamW; the learning rate is constant and falls linearly
to zero at the end, so a run can be resumed with another budget of tokens.  The last part of the
run uses full-length contexts.  Everything that the run depends on is drawn from (seed, block), so
a resumed run continues exactly.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel

from saekit.errors import InputError, TrainingError
from saekit.files import atomic_path, ensure_writable, write_text
from saekit.model.saving import save_model, write_manifest
from saekit.text import relational
from saekit.text.corpora import read_documents
from saekit.text.packing import encode_documents, pack
from saekit.text.tokenizer import BOS, train_tokenizer

logger = logging.getLogger(__name__)
BLOCK = 32  # steps drawn at once


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the result; stored with the model."""

    d_model: int = 192
    n_layers: int = 12
    n_heads: int = 12
    n_ctx: int = 256
    vocabulary: int = 8192
    tokens: int = 20_000_000
    context: int = 128
    long_share: float = 0.1
    batch_tokens: int = 4096
    generated_share: float = 0.5
    lr: float = 2e-3
    muon_lr: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.3
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 250

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise InputError(f"d_model {self.d_model} is not divisible by {self.n_heads} heads.")
        if not 1 < self.context <= self.n_ctx <= self.batch_tokens:
            raise InputError(
                f"context {self.context}, n_ctx {self.n_ctx} and batch_tokens {self.batch_tokens} "
                "must not decrease in this order."
            )
        if not 257 <= self.vocabulary <= 65_536:  # BOS and 256 bytes; ids are stored as uint16
            raise InputError(f"A vocabulary of {self.vocabulary} is not between 257 and 65536.")


def _float32_attention(module, query, key, value, mask, scaling=None, dropout=0.0, **_):
    # bf16 attention with 16-wide heads is four times slower than float32 in the CPU backward
    with torch.autocast(query.device.type, enabled=False):
        out = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True
        )
    return out.transpose(1, 2).contiguous(), None


def make_tokenizer(corpus: Sequence[Path], config: PretrainConfig) -> Tokenizer:
    """BPE over part of the corpus, generated text, and the relation words on their own.

    Each relation word and first name is repeated alone with and without its leading space, so
    that it becomes one token in both places ("large" in quotes, " large" in running text).
    """

    def stream():
        yield from islice(read_documents(corpus[:1]), 1500)
        yield from islice(relational.documents(seed=config.seed), 20_000)
        words, _ = relational.relation_words()
        alone = [f'"{word}" {word}' for word in words] + [f" {n}" for n in relational.first_names()]
        for _ in range(300):
            yield " ".join(alone)

    return train_tokenizer(stream(), config.vocabulary)


class Batches:
    """Rows of training tokens, a pure function of (config, block number, context)."""

    def __init__(self, corpus: np.ndarray, tokenizer: Tokenizer, config: PretrainConfig):
        self.corpus, self.tokenizer, self.config = corpus, tokenizer, config
        self.bos = tokenizer.encode(BOS).ids[0]
        self._orders: dict[tuple[int, ...], np.ndarray] = {}

    def _window_order(self, epoch: int, context: int) -> np.ndarray:
        key = (self.config.seed, 1, epoch, context)
        if key not in self._orders:
            windows = len(self.corpus) // (context - 1)
            self._orders = {key: np.random.default_rng(key).permutation(windows)}
        return self._orders[key]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def block(self, number: int, context: int) -> Tensor:
        """All rows of `BLOCK` steps: [BLOCK, batch, context]."""
        config = self.config
        batch = config.batch_tokens // context
        rows = np.empty((BLOCK * batch, context), dtype=np.int64)
        order = np.random.default_rng((config.seed, number)).permutation(len(rows))
        n_generated = round(len(rows) * config.generated_share)
        generated, natural = order[:n_generated], order[n_generated:]
        texts = relational.documents(seed=config.seed * 1_000_003 + number)
        packed = pack(texts, self._encode, context, self.bos, split=False)
        rows[generated] = list(islice(packed, n_generated))
        # each pass over the corpus visits its windows in a new random order
        width = context - 1
        first = number * len(natural)
        epochs, places = np.divmod(first + np.arange(len(natural)), len(self.corpus) // width)
        rows[natural, 0] = self.bos
        for row, epoch, place in zip(natural, epochs, places, strict=True):
            start = self._window_order(int(epoch), context)[place] * width
            rows[row, 1:] = self.corpus[start : start + width]
        return torch.from_numpy(rows).view(BLOCK, batch, context)


def learning_rate(done: float, step: int, config: PretrainConfig) -> float:
    """Factor on the base rates: linear warm-up, constant, linear to zero over `decay_share`."""
    return min(1.0, (step + 1) / config.warmup_steps, (1 - done) / config.decay_share)


def _optimizers(model: nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    hidden, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        else:
            (matrices if "wte" in name or "wpe" in name else hidden).append(parameter)
    decay = config.weight_decay
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(
        groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=decay, fused=True
    )
    muon = torch.optim.Muon(
        hidden, lr=config.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


def gpt2_config(config: PretrainConfig) -> GPT2Config:
    """The Hugging Face configuration of the model to train (no dropout, tied embeddings)."""
    return GPT2Config(
        vocab_size=config.vocabulary, n_positions=config.n_ctx, n_embd=config.d_model,
        n_layer=config.n_layers, n_head=config.n_heads, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip


def _save_checkpoint(folder: Path, model, optimizers, step: int, tokens: int) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for o, optimizer in enumerate(optimizers):
        for i, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{o}.{i}.{name}"] = torch.as_tensor(value)
    tensors["progress"] = torch.tensor([step, tokens])
    with atomic_path(folder / "checkpoint.safetensors") as path:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)


def _load_checkpoint(folder: Path, model, optimizers) -> tuple[int, int]:
    """Steps and tokens done; weights and optimiser states are put in place."""
    file = folder / "checkpoint.safetensors"
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


def _seconds_until(folder: Path, step: int) -> float:
    """Training time of an interrupted run; its metrics after the checkpoint are dropped."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0.0
    kept = []
    for line in path.read_text().splitlines():
        if not line.endswith("}") or json.loads(line)["step"] > step:
            break  # cut off by the interruption, or steps that are repeated now
        kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))
    return json.loads(kept[-1])["seconds"] if kept else 0.0


def _corpus_tokens(corpus: Sequence[Path], tokenizer: Tokenizer, cache: Path) -> np.ndarray:
    if not cache.exists():
        bos = tokenizer.encode(BOS).ids[0]

        def encode(texts: list[str]) -> list[list[int]]:
            return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

        documents = tqdm(read_documents(corpus), desc="tokenising the corpus", unit=" documents")
        rows = encode_documents(documents, encode)
        ids = [np.array([bos, *row], dtype=np.uint16) for row in rows]
        with atomic_path(cache) as path, path.open("wb") as handle:
            np.save(handle, np.concatenate(ids))
    return np.load(cache, mmap_mode="r")


def pretrain(
    corpus: Sequence[Path],
    out: Path,
    config: PretrainConfig,
    held_out: Sequence[Path] = (),
    device: str = "cpu",
    compiled: bool = True,
) -> dict[str, Any]:
    """Train a GPT-2 from scratch and save it in Hugging Face form (float16).

    Args:
        corpus: text files or folders.
        out: model folder; `out/training` keeps checkpoints, metrics and tokenised text, and a run
            found there is continued.
        config: sizes and hyper-parameters.
        held_out: text files never trained on; the loss on them goes into the manifest.
        device: "cpu" or "cuda".
        compiled: whether to compile the training step (a minute once, then about twice as fast).

    Returns:
        The manifest, also written beside the weights.

    Raises:
        InputError: no corpus, or `out` cannot be written.
        TrainingError: the loss is not finite.
    """
    work = ensure_writable(out / "training")
    if not corpus:
        raise InputError("Pretraining needs --text: a file or folder of documents.")
    if not (work / "tokenizer.json").exists():
        with atomic_path(work / "tokenizer.json") as path:
            make_tokenizer(corpus, config).save(str(path))
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    natural = _corpus_tokens(corpus, tokenizer, work / "tokens.npy")
    if len(natural) < config.n_ctx:
        raise InputError(f"The text has only {len(natural)} tokens: give at least {config.n_ctx}.")
    batches = Batches(natural, tokenizer, config)

    torch.manual_seed(config.seed)
    AttentionInterface.register("saekit_float32", _float32_attention)
    model = GPT2LMHeadModel(gpt2_config(config))
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.config._attn_implementation = "saekit_float32" if device == "cpu" else "sdpa"
    optimizers = _optimizers(model, config)
    base_rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    step = tokens = 0
    if (work / "checkpoint.safetensors").exists():
        step, tokens = _load_checkpoint(work, model, optimizers)
        logger.info("continuing at step %d", step)

    def loss_of(ids: Tensor) -> Tensor:
        hidden = model.transformer(ids[:, :-1]).last_hidden_state
        logits = F.linear(hidden, model.lm_head.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    loss_of = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    bar = tqdm(total=config.tokens, initial=tokens, unit=" tokens", unit_scale=True, desc="train")
    seconds, last = _seconds_until(work, step), time.time()
    block_key, block, recent = None, torch.empty(0), []
    while tokens < config.tokens:
        done = tokens / config.tokens
        context = config.n_ctx if done >= 1 - config.long_share else config.context
        if block_key != (step // BLOCK, context):
            block_key = (step // BLOCK, context)
            block = batches.block(*block_key)
        ids = block[step % BLOCK].to(device)
        factor = learning_rate(done, step, config)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = loss_of(ids)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + ids.numel()
        bar.update(ids.numel())
        recent.append(loss.detach())
        checkpoint_due = step % config.checkpoint_steps == 0 or tokens >= config.tokens
        if step % 25 == 0 or checkpoint_due:  # so no checkpoint is written of a diverged run
            value = torch.stack(recent).mean().item()
            recent.clear()
            if not np.isfinite(value):
                raise TrainingError(f"The loss is {value} at step {step}: lower --muon-lr.")
            bar.set_postfix(loss=f"{value:.3f}", lr=f"{factor:.2f}")
            seconds, last = seconds + time.time() - last, time.time()
            line = {"step": step, "tokens": tokens, "loss": value, "norm": norm.item()}
            with (work / "metrics.jsonl").open("a") as handle:
                handle.write(json.dumps({**line, "seconds": round(seconds, 1)}) + "\n")
        if checkpoint_due:
            _save_checkpoint(work, model, optimizers, step, tokens)
            save_model(model, tokenizer, out)
    save_model(model, tokenizer, out)
    progress = {"steps": step, "trained_tokens": tokens, "hours": seconds / 3600}
    return write_manifest(out, config, progress, corpus, held_out)
