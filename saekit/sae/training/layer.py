"""The dictionary of one layer while it is trained: parameters, Adam, dead features, input scale."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saekit.sae.dictionary import Dictionary
from saekit.sae.kernels import Reference, kernels_for
from saekit.sae.training.architectures import CLASS_OF, TopK
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.operands import Float32, NarrowChoice, NarrowFactors, Scratch
from saekit.sae.training.step import DeadFeatures, StepResult, dense_step, sparse_step

# rows of norm 1 overshoot: the k largest of many random features overlap; tried 1, 1/2, 1/4
_ENCODER_SCALE = 0.5
# W_dec learns faster than lr by this over sqrt(d_in): an Adam step of lr on every entry turns a row
# of norm 1 by at most lr sqrt(d_in); 10 at d_in 64 found more than 1 or 3 (benchmarks/TRAINING.md)
_DECODER_TURN = 80.0
_THRESHOLD_RATE = 0.01  # of the running mean that becomes BatchTopK's threshold, as in SAELens
_RESAMPLED_ENCODER = 0.2  # of the mean norm of living encoder rows (Bricken et al. 2023)
_STATE = (
    "scale", "variance", "since_fired", "fired", "counted", "batch_threshold", "adam_steps",
)  # fmt: skip


class LayerTraining:
    """One layer's training state.

    Inside, activations are multiplied by `scale` so that their total variance is d_in: the same
    learning rate then fits layers of very different norms.  Decoder rows are kept at norm 1.

    Attributes:
        parameters: by name, matrices with one row per feature (see architectures.py).
        scale: factor from model units to training units (scalar tensor).
        variance: total variance of the scaled activations (d_in, or 0 if they are constant).
        since_fired: tokens since each feature was last active.
        fired, counted: activations per feature and tokens, during the decay of the learning rate.
        batch_threshold: running mean of each batch's smallest activation (BatchTopK); 0 at first.
    """

    def __init__(
        self,
        layer: int,
        d_in: int,
        config: TrainConfig,
        device: torch.device,
        scratch: Scratch | None = None,
        kernels: Reference | None = None,
    ):
        """
        Args:
            layer: residual layer.
            d_in: width of the stream.
            config: of the run; `config.at(layer)` decides about this layer.
            device: where to train.
            scratch: memory shared with other layers that take steps in turn.
            kernels: how sums are computed; by default the fastest for the device.
        """
        self.layer, self.run, self.config = layer, config, config.at(layer)
        self.kind = CLASS_OF[self.config.architecture](self.config)
        self.kernels, self.scratch = kernels or kernels_for(device), scratch or Scratch(device)
        d_sae = self.config.d_sae
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + layer)
        directions = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1).to(device)
        self.parameters = self.kind.start(directions * _ENCODER_SCALE, directions)  # tied
        self.means = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.squares = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.scale = torch.ones((), device=device)
        self.variance = torch.ones((), device=device)
        self.since_fired = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.fired = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.counted = torch.zeros((), dtype=torch.long, device=device)
        self.batch_threshold = torch.zeros((), device=device)
        self.adam_steps = torch.zeros((), dtype=torch.long)
        self._dead = DeadFeatures(config.dead_tokens)
        narrow = config.bf16 and self.kind.sparse
        self.operands = Float32()
        if narrow:
            kind = NarrowFactors if device.type == "cpu" else NarrowChoice
            self.operands = kind(self.parameters)

    def fit_input(self, x: Float[Tensor, "token d_in"]) -> None:
        """Set scale and b_dec from a sample of activations in model units."""
        x = x.float()
        mean = x.mean(0)
        variance = (x - mean).square().sum(1).mean()
        if variance > 0:
            self.scale = (x.shape[1] / variance).sqrt()
        self.variance = variance * self.scale**2
        centre = geometric_median(x) if self.run.b_dec_init == "geometric_median" else mean
        self.parameters["b_dec"].copy_(centre * self.scale)

    @property
    def dead(self) -> Tensor:
        """Indices of features that were not active for `dead_tokens` tokens."""
        return self._dead.indices(self.since_fired)

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "token d_in"],
        factor: float = 1.0,
        sparsity_factor: float = 1.0,
        count: bool = False,
    ) -> StepResult:
        """Update on one batch of activations in model units.

        Args:
            x: activations, float32 or bfloat16.
            factor: of the layer's learning rate.
            sparsity_factor: of its sparsity penalty.
            count: whether to count firings for the stored sparsity.
        """
        if isinstance(self.kind, TopK):
            gradients, result = sparse_step(
                x, self.parameters, self.kind, self.dead, self.kernels, self.scratch,
                self.operands, self.scale,
            )  # fmt: skip
            if self.kind.stored_as != self.kind.name:
                self._follow(result.smallest)
        else:
            sparsity = self.config.sparsity * sparsity_factor
            with torch.enable_grad():
                gradients, result = dense_step(
                    x * self.scale, self.parameters, self.kind, self.dead, sparsity
                )
        self._adam(gradients, self.config.lr * factor)
        self.since_fired += len(x)
        self.since_fired.masked_fill_(result.fired > 0, 0)
        self._dead.tell(self.since_fired)
        if count:
            self.fired += result.fired
            self.counted += len(x)
        return result

    def _follow(self, smallest: Tensor) -> None:
        """Move BatchTopK's threshold towards a batch's smallest activation."""
        first = self.batch_threshold == 0
        moved = torch.where(first, smallest, self.batch_threshold.lerp(smallest, _THRESHOLD_RATE))
        self.batch_threshold = torch.where(torch.isfinite(smallest), moved, self.batch_threshold)

    def _adam(self, gradients: dict[str, Tensor], lr: float) -> None:
        self.adam_steps += 1
        decoder_lr = lr * _DECODER_TURN / self.parameters["W_dec"].shape[1] ** 0.5
        for name, parameter in self.parameters.items():
            rows = (parameter, gradients[name], self.means[name], self.squares[name])
            if parameter.dim() == 1:
                rows = tuple(tensor[None] for tensor in rows)
            self.kernels.adam_rows(
                *rows,
                lr=decoder_lr if name == "W_dec" else lr,
                step=int(self.adam_steps),
                unit=name == "W_dec",
                shadow=self.operands.copies.get(name),
            )

    @torch.no_grad()
    def resample(self, x: Float[Tensor, "token d_in"], seed: int) -> int:
        """Point dead features at what is reconstructed worst; returns how many.

        A token is drawn with probability proportional to its squared error squared, and the
        feature's rows become its direction, with little weight in the encoder and Adam forgotten
        (Bricken et al. 2023, "Towards Monosemanticity", appendix on resampling).

        Args:
            x: activations in model units.
            seed: of the drawing.
        """
        dead = self.dead
        if self.kind.dead_rule != "resample" or not len(dead):
            return 0
        p = self.parameters
        x = x.float() * self.scale
        loss = self.kind.loss(x, p, dead[:0], 0.0)
        error = (x - loss.values @ p["W_dec"] - p["b_dec"]).square().sum(1)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.layer)
        chances = error.double().square().cpu().clamp_min(1e-300)
        drawn = torch.multinomial(chances, len(dead), replacement=True, generator=generator)
        rows = F.normalize((x - p["b_dec"])[drawn.to(x.device)], dim=1)
        alive = torch.ones(len(p["W_enc"]), dtype=torch.bool, device=x.device)
        alive[dead] = False
        norm = p["W_enc"][alive].norm(dim=1).mean() if alive.any() else torch.ones(())
        p["W_dec"][dead] = rows
        p["W_enc"][dead] = rows * norm * _RESAMPLED_ENCODER
        for name, value in p.items():
            if name not in ("W_dec", "W_enc", "b_dec"):
                value[dead] = 0
            if name != "b_dec":
                self.means[name][dead] = 0
                self.squares[name][dead] = 0
        self.since_fired[dead] = 0
        return len(dead)

    @property
    def dead_share(self) -> Tensor:
        """Share of features not active for `dead_tokens` tokens."""
        return (self.since_fired >= self.run.dead_tokens).float().mean()

    @property
    def never_active_share(self) -> Tensor:
        """Share of features not active once during the decay of the learning rate."""
        return (self.fired == 0).float().mean()

    def dictionary(self, metadata: dict[str, Any]) -> Dictionary:
        """The trained dictionary in model units; an activation is the length of what it adds."""
        parameters = self.parameters
        if self.kind.stored_as != self.kind.name:
            parameters = {**parameters, "threshold": self.batch_threshold}
            metadata = {**metadata, "training_architecture": self.kind.name, "k": self.config.k}
        fields = self.kind.inference(parameters, self.scale)
        fields.setdefault("b_enc", None)
        rate = self.fired / self.counted.clamp_min(1)
        return Dictionary(
            layer=self.layer,
            k=self.config.k if self.kind.stored_as == "topk" else None,
            log_sparsity=(rate.float() + 1e-10).log10(),
            metadata=metadata,
            **fields,
        )

    def state(self) -> dict[str, Tensor]:
        """Everything needed to continue, by name."""
        groups = {"parameters": self.parameters, "mean": self.means, "square": self.squares}
        tensors = {f"{g}.{n}": value for g, group in groups.items() for n, value in group.items()}
        return tensors | {name: getattr(self, name) for name in _STATE}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state()`."""
        for name, value in self.state().items():
            if name in _STATE:
                setattr(self, name, tensors[name].to(value.device))
            else:
                value.copy_(tensors[name])
        for name, copy in self.operands.copies.items():
            copy.copy_(self.parameters[name])


def geometric_median(
    x: Float[Tensor, "token d_in"], iterations: int = 50
) -> Float[Tensor, " d_in"]:
    """The point with the least sum of distances (Weiszfeld 1937), robust against outliers."""
    centre = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - centre).norm(dim=1).clamp_min(1e-6)
        centre = (weights[:, None] * x).sum(0) / weights.sum()
    return centre
