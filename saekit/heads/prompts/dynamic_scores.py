"""The dynamic score: what heads really write on prompts, to compare the static score with.

Each source token is put into four carrier prompts (those of MAPS, Elhelo and Geva 2024).  At the
last position every head's output z W_O is projected with W_U, and the same top-k test is made:
once with the attention as it is ("natural"), once with all attention of the last position on the
source ("forced").  Here z comes from the running model: LN_1, positions and b_V included.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from saekit.heads.grids import Dynamic, Grid
from saekit.heads.pairs import TokenPairs
from saekit.heads.ranking import rank_targets
from saekit.model.exact import ExactModel
from saekit.model.loading import LanguageModel

CARRIERS = (
    "No X means no",
    "The story of X contains",
    "This is a document about X",
    "When I think about X I think about",
)


def pearson(one: Grid, two: Grid) -> float | None:
    """Pearson r over heads; None where either does not vary."""
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return None
    return float(np.corrcoef(one.ravel(), two.ravel())[0, 1])


@torch.no_grad()
def carrier_values(
    model: LanguageModel, exact: ExactModel, pairs: TokenPairs
) -> tuple[Float[Tensor, "layer head row d_head"], Float[Tensor, "layer head row d_head"]]:
    """z of every head at the last position, natural and forced; a row per carrier and pair."""
    natural, forced = [], []
    bos = [model.bos] * model.prepend_bos
    device = exact.W_E.device
    with tqdm(total=len(CARRIERS) * len(pairs), desc="carrier prompts", delay=2) as bar:
        for carrier in CARRIERS:
            before, after = carrier.split(" X", 1)
            start, end = [*bos, *model.tokens(before)], model.tokens(after) if after else []
            for source in pairs.source.tolist():
                clean = exact.run(torch.tensor([*start, source, *end], device=device))
                natural.append(torch.einsum("lhk,lhkd->lhd", clean.pattern[:, :, -1], clean.value))
                forced.append(clean.value[:, :, len(start)])
                bar.update()
    return torch.stack(natural, 2), torch.stack(forced, 2)


def dynamic_scores(
    model: LanguageModel,
    exact: ExactModel,
    pairs: TokenPairs,
    k: int,
    static: tuple[Grid, Grid],
) -> Dynamic:
    """Dynamic scores of all heads and their correlation with the static ones.

    Args:
        pairs, k: those of the static scores.
        static: (scores, suppression).
    """
    target = torch.from_numpy(pairs.target).repeat(len(CARRIERS)).to(exact.W_E.device)
    grids: dict[str, Grid] = {}
    correlation: dict[str, float | None] = {}
    values = dict(zip(("natural", "forced"), carrier_values(model, exact, pairs), strict=True))
    for name, z in values.items():

        def writes(layer: int, head: int, rows: Tensor, z: Tensor = z) -> Tensor:
            return z[layer, head, rows].double() @ exact.blocks[layer].W_O[head].double()

        sides = rank_targets(exact, z, target, k, writes, title=f"{name} attention")
        for end, side, grid in zip(("", "_suppression"), sides, static, strict=True):
            grids[name + end] = side.hits.double().mean(-1).clamp(0, 1).cpu().numpy()
            correlation[name + end] = pearson(grid, grids[name + end])
    return Dynamic(carriers=list(CARRIERS), n_pairs=len(pairs), correlation=correlation, **grids)
