"""Does training find features that are known to be there?  saekit beside SAELens, as JSON.

    python benchmarks/recovery.py [--size smoke|small|full] [--setting easy,correlated,hierarchy]
        [--architecture topk,batchtopk,...] [--peer saelens|none] [--tokens N] [--seeds 1]
        [--first-seed 0] [--threads 2] [--device cpu|cuda]

Activations are made from planted features: unit vectors, more than the space has dimensions
(superposition), few of them active at a time, each with a magnitude drawn from |N(1, 0.25)|:

    easy        features are active independently and equally often
    correlated  features come in pairs; where the first is active, the second is with probability
                0.6, and the other way round; alone each is as frequent as in "easy"
    hierarchy   a parent and three children: a child is active only where its parent is, the parent
                alone in 0.4 of its cases, with one of its children (equally often) in the others

A dictionary as wide as there are planted features is then trained on samples of them, scaled to
unit variance per dimension so that a sparsity coefficient means the same to both sides.  saekit
takes the steps of `saekit.train` (LayerTraining, resampling included); SAELens' SAETrainer takes
the same batches in the same order, for the same number of tokens, with the same warm-up and decay
of the learning rate, the same warm-up of the penalty, and the same number of tokens after which a
feature is dead; all else are each side's defaults.  Both get the same sweep of learning rates and,
where there is a penalty, of its coefficient (the size's `lr` and `sparsity`); the best run by
matched cosine counts, on both sides.

Scores, from the decoder's directions W and the planted P (cos = their cosines):

    mean_max_cosine   mean over planted features of the largest cos
    recovered         share of planted features whose largest cos is at least 0.9
    matched_cosine    mean |cos| after assigning each planted feature a feature of its own
                      (linear assignment; `mean_correlation_coefficient` of SAELens)

beside L0 and FVU on samples that no training saw.  "difference" is saekit - SAELens.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import StringIO
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saekit.sae.training.config import ARCHITECTURES, TrainConfig
from saekit.sae.training.layer import LayerTraining

SETTINGS = ("easy", "correlated", "hierarchy")
SCORES = ("mean_max_cosine", "recovered", "matched_cosine")
RECOVERED = 0.9
TOGETHER = 0.6  # chance of a pair's second feature where the first is active
PARENT_ALONE, CHILDREN = 0.4, 3
HELD_OUT = 8192
PLANTED_SEED = 7_654_321_000

LRS = (1e-3, 3e-3, 1e-2, 3e-2)
SPARSITIES: dict[str, tuple[float, ...]] = {
    "standard": (0.3, 1.0, 3.0),
    "gated": (0.3, 1.0, 3.0),
    "jumprelu": (0.3, 1.0, 3.0),
}


@dataclass(frozen=True)
class Size:
    """How much is planted and how long training lasts."""

    d_in: int
    features: int
    active: int
    tokens: int
    batch_tokens: int
    dead_tokens: int
    lrs: tuple[float, ...]


SIZES = {
    "smoke": Size(16, 32, 2, 20_480, 256, 5_000, (3e-3,)),
    "small": Size(64, 128, 4, 1_024_000, 1024, 50_000, LRS),
    "full": Size(128, 512, 8, 4_096_000, 2048, 100_000, LRS),
}
Rebuild = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> activations, reconstruction


class Planted:
    """Features and samples of them, all decided by the seed."""

    def __init__(self, setting: str, size: Size, seed: int, device: torch.device):
        self.setting, self.size, self.device = setting, size, device
        # far from the seeds of training: equal ones would start saekit at the planted features
        self.generator = torch.Generator(device).manual_seed(PLANTED_SEED + seed)
        shape = (size.features, size.d_in)
        directions = torch.randn(shape, generator=self.generator, device=device)
        self.directions = F.normalize(directions, dim=1)
        x = self._mixed(HELD_OUT)
        self.scale = (size.d_in / (x - x.mean(0)).square().sum(1).mean()).sqrt()

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def _active(self, count: int) -> Tensor:
        """Which features are active, [count, features]."""
        features, rate = self.size.features, self.size.active / self.size.features
        if self.setting == "easy":
            return self._uniform(count, features) < rate
        if self.setting == "correlated":  # a pair: both, the first, the second, or none
            drawn = self._uniform(count, features // 2)
            both, alone = rate * TOGETHER, rate * (1 - TOGETHER)
            first = drawn < both + alone
            second = (drawn < both) | ((drawn >= both + alone) & (drawn < both + 2 * alone))
            return torch.stack([first, second], dim=2).flatten(1)
        # an active parent brings 1 - PARENT_ALONE children on average
        groups = features // (1 + CHILDREN)
        parents = self._uniform(count, groups) < self.size.active / groups / (2 - PARENT_ALONE)
        which = self._uniform(count, groups) / (1 - PARENT_ALONE) * CHILDREN
        children = which.long()[:, :, None] == torch.arange(CHILDREN, device=self.device)
        family = torch.cat([parents[:, :, None], parents[:, :, None] & children], dim=2)
        return family.flatten(1)

    def _mixed(self, count: int) -> Tensor:
        active = self._active(count)
        noise = torch.randn(active.shape, generator=self.generator, device=self.device)
        values = active * (1 + 0.25 * noise).abs()
        return values @ self.directions[: values.shape[1]]

    def sample(self, count: int) -> Tensor:
        """Activations with unit variance per dimension."""
        return self._mixed(count) * self.scale


def run_saekit(
    pool: Tensor, size: Size, architecture: str, lr: float, sparsity: float, seed: int
) -> tuple[Tensor, Rebuild]:
    """Train as `saekit.train` does; returns decoder rows and what encodes and decodes."""
    config = TrainConfig(
        architecture=architecture, d_sae=size.features, k=size.active, lr=lr, sparsity=sparsity,
        tokens=size.tokens, batch_tokens=size.batch_tokens, dead_tokens=size.dead_tokens, seed=seed,
    )  # fmt: skip
    config.check()
    layer = LayerTraining(0, size.d_in, config, pool.device)
    layer.fit_input(pool[: 16 * size.batch_tokens])
    for step, x in enumerate(pool.split(size.batch_tokens)):
        decaying = step >= (1 - config.decay) * config.steps
        factor, sparse = config.schedule(step), config.sparsity_schedule(step)
        layer.step(x.clone(), factor, sparse, count=decaying)
        before, after = step * size.batch_tokens, (step + 1) * size.batch_tokens
        if not decaying and after // size.dead_tokens > before // size.dead_tokens:
            layer.resample(x, seed=step)
    dictionary = layer.dictionary({})

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        active = dictionary.encode(x)
        return active, dictionary.decode(active)

    return dictionary.W_dec, rebuild


def _saelens(architecture: str, size: Size, sparsity: float, warmup: int) -> Any:
    """SAELens' training dictionary of an architecture."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        GatedTrainingSAE,
        GatedTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    shape: Any = {"d_in": size.d_in, "d_sae": size.features}
    penalty: Any = {"l1_coefficient": sparsity, "l1_warm_up_steps": warmup, **shape}
    prefixes = (*TrainConfig().prefixes, 1)
    widths = sorted({max(1, round(share * size.features)) for share in prefixes})
    made = {
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(k=size.active, **shape)),
        "batchtopk": lambda: BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(k=size.active, **shape)
        ),
        "matryoshka": lambda: MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                k=size.active, matryoshka_widths=widths, **shape
            )
        ),
        "jumprelu": lambda: JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(l0_coefficient=sparsity, l0_warm_up_steps=warmup, **shape)
        ),
        "gated": lambda: GatedTrainingSAE(GatedTrainingSAEConfig(**penalty)),
        "standard": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(**penalty)),
    }  # fmt: skip
    return made[architecture]()


def run_saelens(
    pool: Tensor, size: Size, architecture: str, lr: float, sparsity: float, seed: int
) -> tuple[Tensor, Rebuild]:
    """The same through SAELens' SAETrainer."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    run = TrainConfig(tokens=size.tokens, batch_tokens=size.batch_tokens)
    sae = _saelens(architecture, size, sparsity, int(run.sparsity_warmup * run.steps))
    config = SAETrainerConfig(
        total_training_samples=run.steps * size.batch_tokens,
        train_batch_size_samples=size.batch_tokens,
        lr=lr, lr_end=lr,
        lr_warm_up_steps=max(2, int(run.warmup * run.steps)),  # of 1 it divides by zero
        lr_decay_steps=int(run.decay * run.steps),
        dead_feature_window=size.dead_tokens // size.batch_tokens,
        device=str(pool.device),
    )  # fmt: skip
    batches: Iterator[Tensor] = iter(pool.split(size.batch_tokens))
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):  # its progress bar
        SAETrainer(config, sae, batches).fit()

    @torch.no_grad()
    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        active = sae.encode(x)
        return active, sae.decode(active)

    return sae.W_dec.detach(), rebuild


SIDES = {"saekit": run_saekit, "saelens": run_saelens}


@torch.no_grad()
def scores(W_dec: Tensor, planted: Tensor) -> dict[str, float]:
    """See the module's docstring."""
    cosines = F.normalize(W_dec, dim=1) @ F.normalize(planted, dim=1).T
    largest = cosines.amax(0)
    rows, columns = linear_sum_assignment(-cosines.abs().cpu().numpy())
    return {
        "mean_max_cosine": largest.mean().item(),
        "recovered": (largest >= RECOVERED).float().mean().item(),
        "matched_cosine": cosines.abs()[rows, columns].mean().item(),
    }


def sweep(
    side: str, pool: Tensor, held_out: Tensor, planted: Planted, architecture: str, seed: int
) -> list[dict[str, Any]]:
    """One run per learning rate and penalty, best first."""
    runs = []
    for lr, sparsity in product(planted.size.lrs, SPARSITIES.get(architecture, (0.0,))):
        started = time.process_time()
        W_dec, rebuild = SIDES[side](pool, planted.size, architecture, lr, sparsity, seed)
        seconds = time.process_time() - started
        active, rebuilt = rebuild(held_out)
        variance = (held_out - held_out.mean(0)).square().sum()
        found = {
            "lr": lr,
            "sparsity": sparsity,
            **scores(W_dec, planted.directions),
            "l0": (active != 0).float().sum(1).mean().item(),
            "fvu": ((held_out - rebuilt).square().sum() / variance).item(),
        }
        runs.append({n: float(f"{v:.4g}") for n, v in found.items()} | {"cpu_s": round(seconds, 1)})
    return sorted(runs, key=lambda run: -run["matched_cosine"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--setting", default=",".join(SETTINGS))
    parser.add_argument("--architecture", default=",".join(ARCHITECTURES))
    parser.add_argument("--peer", choices=("saelens", "none"), default="saelens")
    parser.add_argument("--tokens", type=int, default=None, help="instead of the size's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.peer == "saelens" and find_spec("sae_lens") is None:
        sys.exit("SAELens is not installed: pip install sae-lens, or give --peer none.")
    settings, kinds = options.setting.split(","), options.architecture.split(",")
    for wanted, known in ((settings, SETTINGS), (kinds, ARCHITECTURES)):
        if wrong := [name for name in wanted if name not in known]:
            sys.exit(f'There is no "{wrong[0]}"; choose from {", ".join(known)}.')
    if options.threads:
        torch.set_num_threads(options.threads)
    sides = ["saekit"] if options.peer == "none" else ["saekit", "saelens"]
    size, device = SIZES[options.size], torch.device(options.device)
    if options.tokens:
        size = replace(size, tokens=options.tokens)
    report: dict[str, Any] = {"size": options.size, **vars(size), "seeds": options.seeds}
    report["first_seed"] = options.first_seed
    for setting in settings:
        table = {kind: {side: [] for side in sides} for kind in kinds}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            planted = Planted(setting, size, seed, device)
            held_out = planted.sample(HELD_OUT)
            steps = size.tokens // size.batch_tokens
            pool = torch.cat([planted.sample(size.batch_tokens) for _ in range(steps)])
            for kind, side in product(kinds, sides):
                found = sweep(side, pool, held_out, planted, kind, seed)
                table[kind][side].append(found)
                best = ", ".join(f"{name} {found[0][name]:.3f}" for name in (*SCORES, "l0", "fvu"))
                print(f"{setting} {kind} {side} (lr {found[0]['lr']}): {best}", file=sys.stderr)
        report[setting] = {kind: summary(by_side) for kind, by_side in table.items()}
    print(json.dumps(report, indent=1))


def summary(by_side: dict[str, list[list[dict[str, Any]]]]) -> dict[str, Any]:
    """Means over seeds of each side's best run, their difference, and all runs."""
    result: dict[str, Any] = {}
    for side, seeds in by_side.items():
        best = [runs[0] for runs in seeds]
        means = {n: sum(run[n] for run in best) / len(best) for n in (*SCORES, "l0", "fvu")}
        result[side] = {**{n: round(v, 4) for n, v in means.items()}, "runs": seeds}
    if "saelens" in result:
        result["difference"] = {
            name: round(result["saekit"][name] - result["saelens"][name], 4) for name in SCORES
        }
    return result


if __name__ == "__main__":
    main()
