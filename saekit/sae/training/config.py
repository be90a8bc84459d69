"""What decides a dictionary training run; stored with everything it makes.  Torch-free."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from saekit.errors import InputError

ArchitectureName = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "standard"]
ARCHITECTURES: tuple[str, ...] = get_args(ArchitectureName)
Start = Literal["mean", "geometric_median"]


@dataclass(frozen=True)
class LayerConfig:
    """Settings that may differ from layer to layer (see `TrainConfig.per_layer`)."""

    architecture: ArchitectureName = "topk"
    """Kind of dictionary; standard is ReLU with L1."""
    d_sae: int = 4096
    """Features per layer."""
    k: int = 32
    """Active features per token (TopK family; on average over a batch for BatchTopK)."""
    lr: float = 3e-3
    """Peak learning rate of Adam, on activations scaled to unit variance per dimension."""
    sparsity: float = 1.0
    """Coefficient of the penalty of jumprelu (L0), gated and standard (L1)."""
    aux_k: int = 32
    """Dead features per token that try to explain the remaining error (AuxK)."""
    aux_coefficient: float = 1 / 32
    """Weight of that auxiliary loss; 0 turns it off."""
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Matryoshka: shares of the features that reconstruct on their own, beside all of them."""
    threshold: float = 0.05
    """JumpReLU: the threshold to start from."""
    bandwidth: float = 0.1
    """JumpReLU: width of the window around a threshold that teaches it."""

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            InputError: which value, and what is possible.
        """
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f'There is no architecture "{self.architecture}"; '
                f"choose one of {', '.join(ARCHITECTURES)}."
            )
        for item in fields(self):
            value = getattr(self, item.name)
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
                raise InputError(f"{item.name} is {value}; it must be a finite number.")
        _at_least_one(self, "d_sae", "k")
        if self.k > self.d_sae:
            raise InputError(
                f"k is {self.k} but there are only {self.d_sae} features: lower k or raise d_sae."
            )
        for name in ("lr", "threshold", "bandwidth"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("aux_k", "aux_coefficient", "sparsity"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if not all(0 < share <= 1 for share in self.prefixes):
            raise InputError(f"prefixes {self.prefixes} must be shares between 0 and 1.")


def _at_least_one(config: LayerConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; it must be at least 1.")


LAYER_FIELDS = tuple(f.name for f in fields(LayerConfig))


@dataclass(frozen=True)
class TrainConfig(LayerConfig):
    """Settings of `saekit.train`; the defaults train good dictionaries for gpt2-mini."""

    per_layer: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """What differs at some layers, such as {12: {"d_sae": 8192, "k": 16}}."""
    tokens: int = 3_000_000
    """Training tokens (each feeds every layer)."""
    layers: tuple[int, ...] | None = None
    """Residual layers 0..n_layers; None for all."""
    batch_tokens: int = 1024
    """Tokens per optimiser step."""
    warmup: float = 0.02
    """Share of the tokens over which the learning rate rises linearly."""
    decay: float = 0.4
    """Share of the tokens, at the end, over which the learning rate falls linearly to zero."""
    sparsity_warmup: float = 0.2
    """Share of the tokens over which the sparsity penalty rises linearly."""
    dead_tokens: int = 50_000
    """A feature is dead when it was not active for this many tokens."""
    context: int = 128
    """Tokens per context, BOS included."""
    buffer_tokens: int = 65_536
    """Tokens shuffled together."""
    b_dec_init: Start = "mean"
    """The decoder bias starts at the "mean" or the "geometric_median" of the first activations."""
    bf16: bool = True
    """Multiply in bfloat16 (on CPUs with AVX512-VNNI features are chosen by 8-bit products);
    weights and sums stay float32."""
    checkpoint_tokens: int = 1_000_000
    """Tokens between checkpoints."""
    seed: int = 0
    """Decides the initial weights and the order of tokens."""

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            InputError: which value, and what is possible.
        """
        super().check()
        _at_least_one(
            self, "tokens", "batch_tokens", "dead_tokens", "context", "buffer_tokens",
            "checkpoint_tokens",
        )  # fmt: skip
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; it must be 0 to 2**63 - 1.")
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise InputError(
                f"warmup {self.warmup} and decay {self.decay} are shares of the training; "
                "together they must be at most 1."
            )
        if not 0 <= self.sparsity_warmup <= 1:
            raise InputError(f"sparsity_warmup is {self.sparsity_warmup}; it must be 0 to 1.")
        if self.b_dec_init not in get_args(Start):
            raise InputError(f'b_dec_init is "{self.b_dec_init}"; choose mean or geometric_median.')
        if self.tokens < self.batch_tokens:
            raise InputError(
                f"tokens is {self.tokens}, less than one batch of {self.batch_tokens}."
            )
        for layer, settings in self.per_layer.items():
            if unknown := sorted(set(settings) - set(LAYER_FIELDS)):
                raise InputError(
                    f'Layer {layer} has the unknown setting "{unknown[0]}"; '
                    f"known are {', '.join(LAYER_FIELDS)}."
                )
            self.at(layer).check()

    def at(self, layer: int) -> LayerConfig:
        """The settings of one layer."""
        shared = {name: getattr(self, name) for name in LAYER_FIELDS}
        return replace(LayerConfig(**shared), **self.per_layer.get(layer, {}))

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.tokens // self.batch_tokens

    def schedule(self, step: int) -> float:
        """Factor of the learning rate at a step (from 0): warm-up, constant, decay to zero."""
        done = step / self.steps
        factors = [1.0]
        if self.warmup > 0:
            factors.append((step + 1) / (self.warmup * self.steps))
        if self.decay > 0:
            factors.append((1 - done) / self.decay)
        return min(factors)

    def sparsity_schedule(self, step: int) -> float:
        """Factor of the sparsity penalty at a step (from 0)."""
        warm = self.sparsity_warmup * self.steps
        return min(1.0, (step + 1) / warm) if warm else 1.0

    def to_dict(self) -> dict[str, Any]:
        """What is stored: plain JSON values."""
        stored = asdict(self)
        stored["per_layer"] = {str(layer): dict(s) for layer, s in self.per_layer.items()}
        stored["layers"] = list(self.layers) if self.layers else None
        stored["prefixes"] = list(self.prefixes)
        return stored

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """Fields that decide the result and differ from a stored configuration."""
        ignored = {"checkpoint_tokens"}
        return [
            f"{name} {stored.get(name)} -> {value}"
            for name, value in self.to_dict().items()
            if name not in ignored and stored.get(name) != value
        ]
