"""How good dictionaries are: sparsity, reconstruction, and what the model loses by using them.

One model pass per batch serves all layers; each dictionary is then spliced in at its layer and
only the blocks after it are run again.  Names and definitions are those of SAELens' `run_evals`,
with two choices of saekit: BOS positions are neither encoded nor replaced (nor zeroed in the
ablation), and losses are taken where both the current and the next token are not BOS.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import (
    Text,
    check_layers,
    context_rows,
    documents_of,
    residuals,
    run_blocks,
    unembed,
)
from saekit.coordinates import hook_name
from saekit.errors import InputError
from saekit.model.loading import LanguageModel, LoadableModel, load_model
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage import DictionarySet

_PASS_TOKENS = 1024  # log-probabilities of this many tokens are held at once


class _Sums:
    """Running float64 sums of one layer over tokens."""

    def __init__(self, dictionary: Dictionary):
        self.d_sae = dictionary.d_sae
        self.x: Tensor | float = 0.0
        self.totals: dict[str, float] = {}
        self.fired = torch.zeros(self.d_sae, dtype=torch.bool, device=dictionary.W_enc.device)
        self.tokens = self.predictions = 0

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value.double().sum().item()

    def metrics(self) -> dict[str, float]:
        totals, n = self.totals, self.tokens
        mean = torch.as_tensor(self.x) / n
        variance = totals["squared_norm"] / n - mean.square().sum().item()
        mse = totals["mse"] / n
        fvu = mse / variance if variance > 1e-10 else float(mse > 1e-10)
        ce = {
            name: totals[name] / self.predictions
            for name in (
                "ce_loss_without_sae", "ce_loss_with_sae", "ce_loss_with_ablation",
                "kl_div_with_sae", "kl_div_with_ablation",
            )
        }  # fmt: skip
        return {
            **{name: totals[name] / n for name in ("l0", "l1")},
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "mse": mse,
            **{name: totals[name] / n for name in ("cossim", "l2_norm_in", "l2_norm_out")},
            "l2_ratio": totals["l2_ratio"] / n,
            "relative_reconstruction_bias": _ratio(totals["squared_norm_out"], totals["dot"]),
            "dead_share": 1 - self.fired.double().mean().item(),
            "ce_loss_score": _ratio(
                ce["ce_loss_with_ablation"] - ce["ce_loss_with_sae"],
                ce["ce_loss_with_ablation"] - ce["ce_loss_without_sae"],
            ),
            "kl_div_score": _ratio(
                ce["kl_div_with_ablation"] - ce["kl_div_with_sae"], ce["kl_div_with_ablation"]
            ),
            **ce,
        }


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


def _add_reconstruction(sums: _Sums, x: Tensor, rebuilt: Tensor, values: Tensor) -> None:
    tiny = torch.finfo(x.dtype).tiny
    norm_in, norm_out = x.norm(dim=1), rebuilt.norm(dim=1)
    dot = (x * rebuilt).sum(1)
    sums.tokens += len(x)
    sums.x = sums.x + x.double().sum(0)
    sums.add(
        l0=(values != 0).sum(1),
        l1=values.abs().sum(1),
        mse=(x - rebuilt).double().square().sum(1),
        squared_norm=x.double().square().sum(1),
        squared_norm_out=rebuilt.double().square().sum(1),
        dot=dot,
        cossim=dot / (norm_in * norm_out).clamp_min(tiny),
        l2_norm_in=norm_in,
        l2_norm_out=norm_out,
        l2_ratio=norm_out / norm_in.clamp_min(1e-4),
    )


def _log_probabilities(
    model: LanguageModel, hidden: Tensor, layer: int, chosen: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "prediction d_vocab"]:
    """Next-token log-probabilities at the chosen positions, from the stream at `layer`."""
    last = run_blocks(model, hidden, layer, model.n_layers)
    return unembed(model, last[chosen]).float().log_softmax(-1)


def _add_losses(
    model: LanguageModel,
    dictionary: Dictionary,
    sums: _Sums,
    hidden: Float[Tensor, "batch pos d_model"],
    ids: Int[Tensor, "batch pos"],
    clean: Float[Tensor, "prediction d_vocab"],
    chosen: Bool[Tensor, "batch pos"],
) -> None:
    """Encode, decode, splice, and run the rest of the model; same for zeros."""
    words = ids != model.bos
    x = hidden[words].float()
    values, indices = dictionary.encode_sparse(x)
    rebuilt = dictionary.decode_sparse(values, indices)
    sums.fired[indices[values != 0]] = True
    _add_reconstruction(sums, x, rebuilt, values)

    targets = ids.roll(-1, 1)[chosen][:, None]
    sums.predictions += len(targets)
    sums.add(ce_loss_without_sae=-clean.gather(1, targets))
    for name, replacement in (("sae", rebuilt), ("ablation", torch.zeros_like(rebuilt))):
        spliced = hidden.clone()
        spliced[words] = replacement.to(hidden.dtype)
        changed = _log_probabilities(model, spliced, dictionary.layer, chosen)
        divergence = F.kl_div(changed, clean, reduction="none", log_target=True).sum(1)
        sums.add(
            **{
                f"ce_loss_with_{name}": -changed.gather(1, targets),
                f"kl_div_with_{name}": divergence,
            }
        )


@torch.no_grad()
def evaluate(
    model: LoadableModel,
    dictionaries: DictionarySet | Iterable[Dictionary],
    text: Text,
    tokens: int = 50_000,
    context: int | None = None,
) -> list[dict[str, Any]]:
    """Metrics of each layer on a text that the dictionaries should not have been trained on.

    Args:
        model: the model they belong to.
        dictionaries: a set (its fingerprint is checked) or single dictionaries.
        text: documents or `Path`s (see `saekit.activations.documents_of`).
        tokens: positions to evaluate, BOS not counted; less if the text ends first.
        context: row length; by default that of the training, else 128.

    Returns:
        Per layer: layer, hook_name, tokens, d_sae, l0, l1, fvu, explained_variance, mse (squared
        error summed over dimensions), cossim, l2_norm_in, l2_norm_out, l2_ratio,
        relative_reconstruction_bias, dead_share (never active in these tokens), ce_loss_score (1
        = no loss, 0 = as bad as zeros), kl_div_score, and the losses they are made of, in nats.

    Raises:
        InputError: no text, or less than one context of it.
        MismatchError: dictionaries of another model.
    """
    model = load_model(model)
    if isinstance(dictionaries, DictionarySet):
        dictionaries.check_model(model)
        trained = dictionaries.manifest.get("training", {})
        context = context or trained.get("context")
    chosen_dictionaries = sorted(dictionaries, key=lambda d: d.layer)
    context = min(context or 128, model.n_ctx)
    layers = [dictionary.layer for dictionary in chosen_dictionaries]
    wanted = check_layers(model, [*layers, model.n_layers])
    sums = [_Sums(dictionary) for dictionary in chosen_dictionaries]
    rows_per_pass = max(1, _PASS_TOKENS // context)
    rows = context_rows(model, documents_of(text), context)
    done = 0
    with tqdm(total=tokens, desc="evaluating", unit=" tokens", unit_scale=True) as bar:
        while done < tokens:
            batch = [row for _, row in zip(range(rows_per_pass), rows, strict=False)]
            if not batch:
                break
            ids = torch.stack([torch.from_numpy(row) for row in batch]).long().to(model.device)
            words = ids != model.bos
            predicted = words & words.roll(-1, 1)
            predicted[:, -1] = False
            streams = dict(zip(wanted, residuals(model, ids, wanted), strict=True))
            clean = _log_probabilities(model, streams[model.n_layers], model.n_layers, predicted)
            for dictionary, total in zip(chosen_dictionaries, sums, strict=True):
                hidden = streams[dictionary.layer]
                _add_losses(model, dictionary, total, hidden, ids, clean, predicted)
            done += int(words.sum())
            bar.update(int(words.sum()))
    if done == 0:
        raise InputError(f"The text is shorter than one context of {context} tokens: give more.")
    return [
        {
            "layer": dictionary.layer,
            "hook_name": hook_name(dictionary.layer, model.n_layers),
            "tokens": done,
            "d_sae": dictionary.d_sae,
            **total.metrics(),
        }
        for dictionary, total in zip(chosen_dictionaries, sums, strict=True)
    ]
