"""How good dictionaries are: sparsity, reconstruction, and what the model loses by using them.

One model pass per batch serves all layers; each dictionary and the zeros it is compared with are
then spliced in at its layer as one batch, and only the blocks after it are run again.

Names and definitions are those of SAELens' `run_evals` (6.54).  With `include_bos` both give the
same figures on the same tokens (`exclude_special_tokens=False` there).  Without, which is the
default here, saekit differs from `exclude_special_tokens=True` in this:

- BOS positions keep their own activation in the zero ablation as well; SAELens zeroes them too;
- losses are taken where the token and the next one are not BOS; SAELens asks this of the token
  only, and takes KL at the last position of a row as well.

Over several passes, relative_reconstruction_bias is here one ratio of sums over all tokens, in
SAELens the mean of each batch's ratio; explained_variance_legacy is in both a mean over tokens of
1 - error / distance from the mean *of the token's pass*, so it depends on how many tokens that has.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Text, check_layers, context_rows, documents_of, residuals
from saekit.coordinates import hook_name
from saekit.errors import InputError
from saekit.model.loading import LanguageModel, LoadableModel, load_model
from saekit.sae.dictionary import Dictionary
from saekit.sae.splicing import ZeroAblation, clean_output, splice_losses
from saekit.sae.storage.dictionary_set import DictionarySet

_PASS_TOKENS = 1024  # of one model pass: tried 512 to 4096 on CPU (more: allocation dominates)
DEFAULT_CONTEXT = 128  # of dictionaries that do not say theirs
DENSITY_EDGES = tuple(step / 2 for step in range(-12, 1))  # log10 firing rate, -6 to 0


class _Sums:
    """Running float64 sums of one layer over tokens, kept on the dictionary's device."""

    def __init__(self, dictionary: Dictionary):
        device = dictionary.W_enc.device
        self.x = torch.zeros(dictionary.d_in, dtype=torch.float64, device=device)
        self.fired = torch.zeros(dictionary.d_sae, dtype=torch.long, device=device)
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0) + value.double().sum()
            self.counts[name] = self.counts.get(name, 0) + len(value)

    def metrics(self) -> dict[str, Any]:
        total = {name: value.item() for name, value in self.totals.items()}
        mean = {name: value / self.counts[name] for name, value in total.items()}
        tokens = self.counts["mse"]
        variance = mean["squared_norm"] - (self.x / tokens).square().sum().item()
        mse = mean["mse"]
        fvu = mse / variance if variance > 1e-10 else float(mse > 1e-10)
        ce, kl = "ce_loss_with_ablation", "kl_div_with_ablation"
        shown = (
            "ce_loss_without_sae", "ce_loss_with_sae", ce, "kl_div_with_sae", kl,
        )  # fmt: skip
        return {
            **{name: mean[name] for name in ("l0", "l1")},
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "explained_variance_legacy": mean["explained_variance_legacy"],
            "mse": mse,
            **{name: mean[name] for name in ("cossim", "l2_norm_in", "l2_norm_out", "l2_ratio")},
            "relative_reconstruction_bias": _ratio(total["squared_norm_out"], total["dot"]),
            "dead_share": (self.fired == 0).double().mean().item(),
            "density_histogram": density_histogram(self.fired / tokens),
            "ce_loss_score": _ratio(
                mean[ce] - mean["ce_loss_with_sae"], mean[ce] - mean["ce_loss_without_sae"]
            ),
            "kl_div_score": _ratio(mean[kl] - mean["kl_div_with_sae"], mean[kl]),
            **{name: mean[name] for name in shown},
        }


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


def density_histogram(rate: Float[Tensor, " d_sae"]) -> dict[str, Any]:
    """How many features fire how often.

    Returns:
        log10_rate: edges of the bins; features: counts between them (rates below the first edge
        are in the first bin, rate 1 in the last); never: features that did not fire.
    """
    log_rate = rate[rate > 0].log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    edges = torch.tensor(DENSITY_EDGES, dtype=log_rate.dtype)
    counts = torch.histogram(log_rate.cpu(), edges).hist.long().tolist()
    never = int((rate == 0).sum())
    return {"log10_rate": list(DENSITY_EDGES), "features": counts, "never": never}


def _add_features(dictionary: Dictionary, sums: _Sums, x: Tensor) -> Tensor:
    """Encode, count, decode; returns the reconstruction."""
    if dictionary.k is None:
        active = dictionary.encode(x)
        sums.add(l0=(active != 0).sum(1), l1=active.abs().sum(1))
        sums.fired += (active != 0).sum(0)
        return dictionary.decode(active, x)
    values, indices = dictionary.encode_sparse(x)
    on = values != 0
    sums.add(l0=on.sum(1), l1=values.abs().sum(1))
    sums.fired += torch.bincount(indices[on], minlength=dictionary.d_sae)
    return dictionary.decode_sparse(values, indices, x)


def _add_reconstruction(sums: _Sums, x: Tensor, rebuilt: Tensor) -> None:
    tiny = torch.finfo(x.dtype).tiny
    norm_in, norm_out = x.norm(dim=1), rebuilt.norm(dim=1)
    dot = (x * rebuilt).sum(1)
    error = (x - rebuilt).double().square().sum(1)
    exact = x.double()
    sums.x += exact.sum(0)
    sums.add(
        mse=error,
        squared_norm=exact.square().sum(1),
        squared_norm_out=rebuilt.double().square().sum(1),
        explained_variance_legacy=1
        - error / (exact - exact.mean(0)).square().sum(1).clamp_min(tiny),
        dot=dot,
        cossim=dot / (norm_in * norm_out).clamp_min(tiny),
        l2_norm_in=norm_in,
        l2_norm_out=norm_out,
        l2_ratio=norm_out / norm_in.masked_fill(norm_in < 1e-4, 1),
    )


def _passes(
    model: LanguageModel, text: Text, context: int, tokens: int, include_bos: bool
) -> Iterable[tuple[Tensor, Tensor]]:
    """(ids, positions that count) until `tokens` of them were given or the text ends."""
    batch, counted = [], 0
    for row in context_rows(model, documents_of(text), context):
        batch.append(torch.from_numpy(row).long())
        counted += context if include_bos else int((batch[-1] != model.bos).sum())
        if counted >= tokens or len(batch) * context >= _PASS_TOKENS:
            ids = torch.stack(batch).to(model.device)
            yield ids, torch.ones_like(ids, dtype=torch.bool) if include_bos else ids != model.bos
            batch = []
        if counted >= tokens:
            return
    if batch:
        ids = torch.stack(batch).to(model.device)
        yield ids, torch.ones_like(ids, dtype=torch.bool) if include_bos else ids != model.bos


@torch.no_grad()
def evaluate(
    model: LoadableModel,
    dictionaries: DictionarySet | Iterable[Dictionary],
    text: Text,
    tokens: int = 50_000,
    context: int | None = None,
    include_bos: bool = False,
) -> list[dict[str, Any]]:
    """Metrics of each layer on a text that the dictionaries should not have been trained on.

    Args:
        model: the model they belong to.
        dictionaries: a set (its fingerprint is checked) or single dictionaries.
        text: documents or `Path`s (see `saekit.activations.documents_of`).
        tokens: positions to evaluate, BOS not counted; less if the text ends first.
        context: row length; by default that of the training, else 128.
        include_bos: treat BOS like any other token, as SAELens does if it is told to exclude none.

    Returns:
        Per layer: layer, hook_name, architecture, tokens, d_sae, l0, l1, fvu, explained_variance
        (1 - fvu), explained_variance_legacy, mse (squared error summed over dimensions), cossim,
        l2_norm_in, l2_norm_out, l2_ratio, relative_reconstruction_bias (2404.16014, equation 10),
        dead_share (never active in these tokens), density_histogram (see the function),
        ce_loss_score (1 = no loss, 0 = as bad as zeros), kl_div_score, and the losses they are made
        of, in nats.

    Raises:
        InputError: no text, or less than one context of it.
        MismatchError: dictionaries of another model.
    """
    model = load_model(model)
    if isinstance(dictionaries, DictionarySet):
        dictionaries.check_model(model)
        context = context or dictionaries.manifest.get("training", {}).get("context")
    if tokens < 1:
        raise InputError(f"Nothing can be measured on {tokens} tokens; give at least 1.")
    context = min(context or DEFAULT_CONTEXT, model.n_ctx)
    parts = sorted(dictionaries, key=lambda dictionary: dictionary.layer)
    wanted = check_layers(model, [*(part.layer for part in parts), model.n_layers])
    sums = [_Sums(dictionary) for dictionary in parts]
    ablation = ZeroAblation(first_replaced=include_bos or not model.prepend_bos)
    done = 0
    with tqdm(total=tokens, desc="evaluating", unit=" tokens", unit_scale=True, delay=2) as bar:
        for ids, kept in _passes(model, text, context, tokens, include_bos):
            streams = dict(zip(wanted, residuals(model, ids, wanted), strict=True))
            clean = clean_output(model, streams[model.n_layers], ids, kept)
            without = clean.cross_entropy(clean.final, clean.lse)
            for dictionary, total in zip(parts, sums, strict=True):
                hidden = streams[dictionary.layer]
                x = hidden[kept].float()
                rebuilt = _add_features(dictionary, total, x)
                _add_reconstruction(total, x, rebuilt)
                losses = splice_losses(
                    model, clean, ablation, hidden, dictionary.layer, kept, rebuilt
                )
                total.add(ce_loss_without_sae=without, **losses)
            done += int(kept.sum())
            bar.update(int(kept.sum()))
    if done == 0:
        raise InputError(f"The text is shorter than one context of {context} tokens: give more.")
    return [
        {
            "layer": dictionary.layer,
            "hook_name": hook_name(dictionary.layer, model.n_layers),
            "architecture": dictionary.training_architecture,
            "tokens": done,
            "d_sae": dictionary.d_sae,
            **total.metrics(),
        }
        for dictionary, total in zip(parts, sums, strict=True)
    ]
