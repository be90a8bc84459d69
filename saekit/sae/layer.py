"""The dictionary of one layer while it is trained: weights, Adam, dead-feature counters, scale."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saekit.sae.config import TrainConfig
from saekit.sae.dictionary import Dictionary
from saekit.sae.step import StepResult, Weights, sparse_step

# rows of norm 1 overshoot: the k largest of many random features overlap; tried 1, 1/2, 1/4
_ENCODER_SCALE = 0.5
_STATE = ("scale", "variance", "since_fired", "fired", "counted")


class LayerTraining:
    """One layer's training state.

    Inside, activations are multiplied by `scale` so that their total variance is d_in: the same
    learning rate then fits layers of very different norms.  Decoder rows are kept at norm 1.

    Attributes:
        scale: factor from model units to training units (scalar tensor).
        variance: total variance of the scaled activations (d_in, or 0 if they are constant).
        since_fired: tokens since each feature was last active.
        fired, counted: activations per feature and tokens, during the decay of the learning rate.
    """

    def __init__(self, layer: int, d_in: int, config: TrainConfig, device: torch.device):
        self.layer, self.config = layer, config
        d_sae = config.d_sae
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + layer)
        directions = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1).to(device)
        self.weights = Weights(
            W_enc=directions * _ENCODER_SCALE,  # tied at the start
            b_enc=torch.zeros(d_sae, device=device),
            W_dec=directions,
            b_dec=torch.zeros(d_in, device=device),
        )
        self.scale = torch.ones((), device=device)
        self.variance = torch.ones((), device=device)
        self.since_fired = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.fired = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.counted = torch.zeros((), dtype=torch.long, device=device)
        self.adam = torch.optim.Adam(self.weights.tensors(), lr=config.lr, fused=True)
        self.shadow = self.weights.W_enc.bfloat16() if config.bf16 else None

    def fit_input(self, x: Float[Tensor, "token d_in"]) -> None:
        """Set scale and b_dec from a sample of activations in model units."""
        mean = x.mean(0)
        variance = (x - mean).square().sum(1).mean()
        if variance > 0:
            self.scale = (x.shape[1] / variance).sqrt()
        self.variance = variance * self.scale**2
        self.weights.b_dec.copy_(mean * self.scale)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "token d_in"], lr: float, count: bool, pre: Tensor | None = None
    ) -> StepResult:
        """Update on one batch of activations in model units.

        Args:
            x: activations; scaled in place.
            lr: learning rate.
            count: whether to count firings for the stored sparsity.
            pre: memory for the encoder product.
        """
        config, weights = self.config, self.weights
        x *= self.scale
        dead = (self.since_fired >= config.dead_tokens).nonzero().squeeze(1)
        result = sparse_step(
            x, weights, config.k, dead, config.aux_k, config.aux_coefficient, pre, self.shadow
        )
        gradient = result.gradients.W_dec  # without the part that normalisation would undo
        gradient.addcmul_((gradient * weights.W_dec).sum(1, keepdim=True), weights.W_dec, value=-1)
        for parameter, slope in zip(weights.tensors(), result.gradients.tensors(), strict=True):
            parameter.grad = slope
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        norms = torch.linalg.vector_norm(weights.W_dec, dim=1, keepdim=True)
        weights.W_dec /= norms.clamp_min(torch.finfo(norms.dtype).tiny)
        if self.shadow is not None:
            self.shadow.copy_(weights.W_enc)

        active = torch.bincount(
            result.features.flatten(), (result.values > 0).flatten(), minlength=config.d_sae
        )
        self.since_fired += len(x)
        self.since_fired[active > 0] = 0
        if count:
            self.fired += active.long()
            self.counted += len(x)
        return result

    @property
    def dead_share(self) -> Tensor:
        """Share of features not active for `dead_tokens` tokens."""
        return (self.since_fired >= self.config.dead_tokens).float().mean()

    @property
    def never_active_share(self) -> Tensor:
        """Share of features not active once during the decay of the learning rate."""
        return (self.fired == 0).float().mean()

    def dictionary(self, metadata: dict[str, Any]) -> Dictionary:
        """The trained dictionary in model units.

        Dividing both biases by the scale is all that folding takes: the selection does not change
        when all preactivations shrink alike, decoder rows stay at norm 1, and an activation is the
        length of what the feature adds to the stream.
        """
        weights = self.weights
        rate = self.fired / self.counted.clamp_min(1)
        return Dictionary(
            layer=self.layer,
            architecture="topk",
            k=self.config.k,
            W_enc=weights.W_enc.T.contiguous(),
            b_enc=weights.b_enc / self.scale,
            W_dec=weights.W_dec.clone(),
            b_dec=weights.b_dec / self.scale,
            log_sparsity=(rate.float() + 1e-10).log10(),
            metadata=metadata,
        )

    def state(self) -> dict[str, Tensor]:
        """Everything needed to continue, by name."""
        tensors = {f"weights.{name}": value for name, value in vars(self.weights).items()}
        tensors |= {name: getattr(self, name) for name in _STATE}
        for index, values in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in values.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state()`."""
        for name, value in vars(self.weights).items():
            value.copy_(tensors[f"weights.{name}"])
        for name in _STATE:
            setattr(self, name, tensors[name].to(value.device))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
        if self.shadow is not None:
            self.shadow.copy_(self.weights.W_enc)
