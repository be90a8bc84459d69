"""What decides how gpt2-mini is made; stored with the model.  Torch-free."""

from dataclasses import dataclass

from saekit.errors import InputError


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the result; stored with the model."""

    d_model: int = 192
    """Width of the residual stream."""
    n_layers: int = 12
    """Blocks."""
    n_heads: int = 12
    """Attention heads per block."""
    n_ctx: int = 256
    """Positions the model has."""
    vocabulary: int = 8192
    """Tokens of the tokenizer, which is made from the same text."""
    tokens: int = 20_000_000
    """Training tokens."""
    context: int = 128
    """Tokens per row, but for the last part of the run."""
    long_share: float = 0.1
    """Share of the tokens, at the end, in rows of n_ctx tokens."""
    batch_tokens: int = 4096
    """Tokens per optimiser step."""
    generated_share: float = 0.5
    """Share of the tokens that are generated relational English."""
    lr: float = 2e-3
    """Peak learning rate of AdamW (embeddings, norms, biases)."""
    muon_lr: float = 3e-3
    """Peak learning rate of Muon (hidden matrices)."""
    warmup_steps: int = 100
    """Steps over which the learning rates rise linearly."""
    decay_share: float = 0.3
    """Share of the tokens, at the end, over which the learning rates fall to zero."""
    weight_decay: float = 0.05
    """Weight decay of both optimisers."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Decides the initial weights and the order of the text."""
    checkpoint_steps: int = 250
    """Steps between checkpoints."""

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
