"""What decides a dictionary training run; stored with everything it makes.  Torch-free."""

from dataclasses import dataclass
from typing import Any

from saekit.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `saekit.train`; the defaults train good dictionaries for gpt2-mini."""

    d_sae: int = 4096
    """Features per layer."""
    k: int = 32
    """Active features per token (TopK)."""
    tokens: int = 3_000_000
    """Training tokens (each feeds every layer)."""
    layers: tuple[int, ...] | None = None
    """Residual layers 0..n_layers; None for all."""
    batch_tokens: int = 1024
    """Tokens per optimiser step."""
    lr: float = 3e-3
    """Peak learning rate of Adam, on activations scaled to unit variance per dimension."""
    warmup: float = 0.02
    """Share of the tokens over which the learning rate rises linearly."""
    decay: float = 0.4
    """Share of the tokens, at the end, over which the learning rate falls linearly to zero."""
    aux_k: int = 32
    """Dead features per token that try to explain the remaining error (AuxK)."""
    aux_coefficient: float = 1 / 32
    """Weight of that auxiliary loss; 0 turns it off."""
    dead_tokens: int = 50_000
    """A feature is dead when it was not active for this many tokens."""
    context: int = 128
    """Tokens per context, BOS included."""
    buffer_tokens: int = 65_536
    """Tokens shuffled together."""
    bf16: bool = True
    """Run the model and the encoder product in bfloat16 (weights and sums stay float32)."""
    checkpoint_tokens: int = 1_000_000
    """Tokens between checkpoints."""
    seed: int = 0
    """Decides the initial weights and the order of tokens."""

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            InputError: which value, and what is possible.
        """
        for name in (
            "d_sae", "k", "tokens", "batch_tokens", "dead_tokens", "context", "buffer_tokens",
            "checkpoint_tokens",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.k > self.d_sae:
            raise InputError(
                f"k is {self.k} but there are only {self.d_sae} features: lower k or raise d_sae."
            )
        if not self.lr > 0:
            raise InputError(f"lr is {self.lr}; it must be above 0.")
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise InputError(
                f"warmup {self.warmup} and decay {self.decay} are shares of the training; "
                "together they must be at most 1."
            )
        if self.aux_k < 0 or self.aux_coefficient < 0:
            raise InputError("aux_k and aux_coefficient must not be negative.")
        if self.tokens < self.batch_tokens:
            raise InputError(
                f"tokens is {self.tokens}, less than one batch of {self.batch_tokens}."
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.tokens // self.batch_tokens

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up, constant, linear decay to zero."""
        done = step / self.steps
        factors = [1.0]
        if self.warmup > 0:
            factors.append((step + 1) / (self.warmup * self.steps))
        if self.decay > 0:
            factors.append((1 - done) / self.decay)
        return self.lr * min(factors)

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """Fields that decide the result and differ from a stored configuration."""
        ignored = {"checkpoint_tokens"}
        own = {**self.__dict__, "layers": list(self.layers) if self.layers else None}
        return [
            f"{name} {stored.get(name)} -> {value}"
            for name, value in own.items()
            if name not in ignored and stored.get(name) != value
        ]
