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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel

from saekit.errors import InputError, TrainingError
from saekit.files import atomic_path, ensure_writable
from saekit.model.pretraining.batches import (
    BLOCK,
    Batches,
    corpus_tokens,
    make_tokenizer,
)
from saekit.model.pretraining.recipe import PretrainConfig
from saekit.model.pretraining.run_state import (
    CHECKPOINT,
    METRICS,
    load_checkpoint,
    save_checkpoint,
    seconds_until,
)
from saekit.model.pretraining.saving import save_model, write_manifest

logger = logging.getLogger(__name__)


def _float32_attention(module, query, key, value, mask, scaling=None, dropout=0.0, **_):
    # bf16 attention with 16-wide heads is four times slower than float32 in the CPU backward
    with torch.autocast(query.device.type, enabled=False):
        out = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True
        )
    return out.transpose(1, 2).contiguous(), None


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
    natural = corpus_tokens(corpus, tokenizer, work / "tokens.npy")
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
    if (work / CHECKPOINT).exists():
        step, tokens = load_checkpoint(work, model, optimizers)
        logger.info("continuing at step %d", step)

    def loss_of(ids: Tensor) -> Tensor:
        hidden = model.transformer(ids[:, :-1]).last_hidden_state
        logits = F.linear(hidden, model.lm_head.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    loss_of = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    bar = tqdm(total=config.tokens, initial=tokens, unit=" tokens", unit_scale=True, desc="train")
    seconds, last = seconds_until(work, step), time.time()
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
            with (work / METRICS).open("a") as handle:
                handle.write(json.dumps({**line, "seconds": round(seconds, 1)}) + "\n")
        if checkpoint_due:
            save_checkpoint(work, model, optimizers, step, tokens)
            save_model(model, tokenizer, out)
    save_model(model, tokenizer, out)
    progress = {"steps": step, "trained_tokens": tokens, "hours": seconds / 3600}
    return write_manifest(out, config, progress, corpus, held_out)
