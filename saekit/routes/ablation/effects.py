"""Effects of removing edges on two things at once: the target, and the model's next token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saekit.model.exact import ExactModel, Forward
from saekit.routes.ablation.removal import path_patched, removed
from saekit.routes.ablation.replacements import ZERO, Replacement
from saekit.routes.attribution.shares import Head
from saekit.routes.targets import Target


@dataclass(frozen=True)
class Effect:
    """What one head set's removal does at the query.

    Attributes:
        target: how much the target falls.
        logit: how much the output token's logit (minus the mean logit) falls.
        probability: of the output token afterwards.
    """

    target: float
    logit: float
    probability: float


@torch.no_grad()
def effects(
    exact: ExactModel,
    clean: Forward,
    target: Target,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    token: int | None = None,
    instead: Replacement = ZERO,
    direct: bool = False,
) -> list[Effect]:
    """Remove the edges keys -> query of each set; measure the target and an output token.

    Args:
        token: the output token's id; the most probable next token by default.
        instead, direct: as in `drops`.  With `direct`, what reaches the output is what the heads
            write there themselves.
    """
    q = target.query
    token = int(clean.logits[q].argmax()) if token is None else token
    run = path_patched if direct else removed
    below = [[head for head in heads if head[0] < target.layer] for heads in sets]
    at_target = run(exact, clean, q, below, keys, target.layer, instead)
    fall = target.measure(exact, clean.resid[target.layer, q]) - target.measure(exact, at_target)
    after, _ = exact.unembed(run(exact, clean, q, sets, keys, None, instead))
    before = clean.logits[q]
    logit = (before[token] - before.mean()) - (after[:, token] - after.mean(-1))
    probability = after.softmax(-1)[:, token]
    rows = zip(fall.tolist(), logit.tolist(), probability.tolist(), strict=True)
    return [Effect(*row) for row in rows]
