"""What the model loses when part of its stream is replaced at one layer.

With h the stream after the final LayerNorm and W_U the unembedding (GPT-2's has no bias), the
logits are z = h @ W_U and the next-token distribution p = exp(z - lse(z)).  Then, for a changed
h' and lse' = lse(h' @ W_U),

    cross-entropy of token t     lse' - h' . W_U[t]
    KL(clean || changed)         (h - h') . (p @ W_U') + lse' - lse

so that only lse is a sum over the vocabulary for each replacement; p @ W_U' (the mean unembedding
under the clean model) is computed once for all layers.  Both are in nats.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saekit.activations import final_norm, run_blocks
from saekit.model.loading import LanguageModel

_ROWS = {"cpu": 256}  # tokens whose logits are held at once; on other devices _MANY_ROWS
_MANY_ROWS = 4096


@dataclass(frozen=True)
class CleanOutput:
    """The unchanged model at the positions where losses are taken.

    Attributes:
        chosen: where KL is taken; cross-entropy too, where `with_target`.
        with_target: of the chosen positions, which have a next token to predict.
        targets: rows of W_U of those next tokens.
        final: the stream after the final LayerNorm.
        mean_row: p @ W_U'.
        lse: log of the sum of exp(logits).
    """

    chosen: Bool[Tensor, "batch pos"]
    with_target: Bool[Tensor, " chosen"]
    targets: Float[Tensor, "target d_model"]
    final: Float[Tensor, "chosen d_model"]
    mean_row: Float[Tensor, "chosen d_model"]
    lse: Float[Tensor, " chosen"]

    def cross_entropy(
        self, final: Float[Tensor, "chosen d_model"], lse: Float[Tensor, " chosen"]
    ) -> Float[Tensor, " target"]:
        """Loss of each next token, in float64."""
        logit = (final[self.with_target] * self.targets).sum(1, dtype=torch.float64)
        return lse[self.with_target].double() - logit

    def divergence(
        self, final: Float[Tensor, "chosen d_model"], lse: Float[Tensor, " chosen"]
    ) -> Float[Tensor, " chosen"]:
        """KL(clean || changed) at each chosen position, in float64."""
        moved = ((self.final - final) * self.mean_row).sum(1, dtype=torch.float64)
        return moved + (lse.double() - self.lse.double())


def _vocabulary_sums(
    model: LanguageModel, final: Float[Tensor, "token d_model"], with_mean: bool = False
) -> tuple[Tensor, Tensor]:
    """lse of each token's logits and, if asked for, p @ W_U'."""
    W_U = model.decoder.W_U.T  # [d_vocab, d_model]
    rows = _ROWS.get(final.device.type, _MANY_ROWS)
    lse = torch.empty(len(final), device=final.device)
    mean_row = torch.empty(final.shape if with_mean else (0, 0), device=final.device)
    log_p = torch.empty(min(rows, len(final)), len(W_U), device=final.device)
    for start in range(0, len(final), rows):
        part = slice(start, start + rows)
        logits = F.linear(final[part], W_U).float()
        out = torch.log_softmax(logits, 1, out=log_p[: len(logits)])
        lse[part] = logits[:, 0] - out[:, 0]
        if with_mean:
            mean_row[part] = out.exp_() @ W_U.float()
    return lse, mean_row


def clean_output(
    model: LanguageModel,
    last: Float[Tensor, "batch pos d_model"],
    ids: Int[Tensor, "batch pos"],
    kept: Bool[Tensor, "batch pos"],
) -> CleanOutput:
    """The unchanged model, from its stream at the last layer.

    Args:
        kept: positions that count.  If that is all of them, KL is taken everywhere and
            cross-entropy everywhere but at the last position; otherwise both are taken where the
            token and the next one count.
    """
    has_next = kept & kept.roll(-1, 1)
    has_next[:, -1] = False
    chosen = kept if bool(kept.all()) else has_next
    final = final_norm(model, last[chosen])
    lse, mean_row = _vocabulary_sums(model, final, with_mean=True)
    targets = model.decoder.W_U.T[ids.roll(-1, 1)[has_next]].float()
    final = final.float()
    return CleanOutput(chosen, has_next[chosen], targets, final, mean_row, lse)


class ZeroAblation:
    """The stream at a layer set to zero, run once for all rows of which nothing then is left.

    Where every position but (perhaps) the first is set to zero, no text is left: the first
    position of all such rows is zero as well, or the same BOS, which sees nothing else.  What the
    model makes of one of them is remembered for the others, in later passes too.

    Args:
        first_replaced: whether rows start with a position that is replaced (a row that starts
            otherwise is always run).
    """

    def __init__(self, first_replaced: bool):
        self.first_replaced = first_replaced
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> (final, lse) of such a row

    def rows(
        self, layer: int, replaced: Bool[Tensor, "batch pos"]
    ) -> tuple[Bool[Tensor, " batch"], Int[Tensor, " run"]]:
        """Which rows are alike, and which have to be run (one of the former first, if needed)."""
        alike = replaced[:, 1:].all(1) & (replaced[:, 0] == self.first_replaced)
        others = (~alike).nonzero().squeeze(1)
        if layer in self._known:
            return alike, others
        return alike, torch.cat([alike.nonzero().squeeze(1)[:1], others])

    def spread(
        self,
        layer: int,
        chosen: Bool[Tensor, "batch pos"],
        alike: Bool[Tensor, " batch"],
        final: Float[Tensor, "run d_model"],
        lse: Float[Tensor, " run"],
    ) -> tuple[Tensor, Tensor]:
        """(final, lse) at the chosen positions of every row, from those of the rows that ran."""
        if not bool(alike.any()):
            return final, lse
        if layer not in self._known:
            own = int(chosen[alike][0].sum())
            self._known[layer] = final[:own], lse[:own]
            final, lse = final[own:], lse[own:]
        known_final, known_lse = self._known[layer]
        number = torch.zeros(chosen.shape, dtype=torch.long, device=chosen.device)
        number[alike] = (chosen[alike].cumsum(1) - 1).clamp_min(0)
        others = chosen & ~alike[:, None]
        number[others] = torch.arange(len(final), device=chosen.device) + len(known_final)
        source = number[chosen]
        return torch.cat([known_final, final])[source], torch.cat([known_lse, lse])[source]


def splice_losses(
    model: LanguageModel,
    clean: CleanOutput,
    ablation: ZeroAblation,
    hidden: Float[Tensor, "batch pos d_model"],
    layer: int,
    replaced: Bool[Tensor, "batch pos"],
    rebuilt: Float[Tensor, "token d_model"],
) -> dict[str, Tensor]:
    """Losses with the dictionary's reconstruction, and with zeros, spliced in at a layer.

    Both go through the rest of the model as one batch.

    Args:
        ablation: what is remembered of earlier passes of the same evaluation.
        hidden: the stream at `layer`.
        replaced: positions that are replaced; the others stay as they are.
        rebuilt: what replaces them.

    Returns:
        ce_loss_with_sae, ce_loss_with_ablation [target]; kl_div_with_sae, kl_div_with_ablation
        [chosen]; float64.
    """
    alike, rows = ablation.rows(layer, replaced)
    with_sae = hidden.clone()
    with_sae[replaced] = rebuilt.to(hidden.dtype)
    ablated = hidden[rows].masked_fill(replaced[rows][..., None], 0)
    last = run_blocks(model, torch.cat([with_sae, ablated]), layer, model.n_layers)
    chosen = torch.cat([clean.chosen, clean.chosen[rows]])
    final = final_norm(model, last[chosen])
    lse, _ = _vocabulary_sums(model, final)
    n = len(clean.lse)
    parts = {
        "sae": (final[:n], lse[:n]),
        "ablation": ablation.spread(layer, clean.chosen, alike, final[n:], lse[n:]),
    }
    losses: dict[str, Tensor] = {}
    for name, (changed, sums) in parts.items():
        losses[f"ce_loss_with_{name}"] = clean.cross_entropy(changed.float(), sums)
        losses[f"kl_div_with_{name}"] = clean.divergence(changed.float(), sums)
    return losses
