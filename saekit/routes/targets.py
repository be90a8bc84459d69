"""What a trace explains: a number that is affine in the residual stream at one layer and position.

A dictionary feature's pre-activation p = x_L(q) . e + c has e = its column of W_enc and
c = b_enc - b_dec . e.  An output token's logit, minus the mean logit, has that form at the last
layer with the final LayerNorm's scale frozen: e = C (gamma_f (W_U[t] - mean W_U)) / sigma_f(q),
c = beta_f . (W_U[t] - mean W_U), where C centres.  For active features the activation equals the
pre-activation, and an ablation cannot evict it, so pre-activations are what is explained.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.coordinates import feature_name
from saekit.errors import InputError
from saekit.model.exact import ExactModel, Forward
from saekit.sae.dictionary import Dictionary


@dataclass(frozen=True)
class Target:
    """The pre-activation (or centred logit) of one thing at one layer and query position.

    Attributes:
        label: what people read: a concept's name, a token's text or `8/1234`.
        kind: how it was named: "concept", "feature" or "token".
        layer: residual point L.
        query: tensor index q (BOS counted).
        direction: e.
        constant: c.
        feature: index of the dictionary feature, None for a token's logit.
        token: id of the output token, None for a feature.
    """

    label: str
    kind: str
    layer: int
    query: int
    direction: Float[Tensor, " d_model"]
    constant: float
    feature: int | None = None
    token: int | None = None

    @property
    def feature_name(self) -> str | None:
        """`8/1234`, None for a token's logit."""
        return None if self.feature is None else feature_name(self.layer, self.feature)

    def value(self, clean: Forward) -> float:
        """p_t(q) in the clean forward pass."""
        return float(clean.resid[self.layer, self.query] @ self.direction) + self.constant

    def measure(
        self, exact: ExactModel, resid: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch"]:
        """p_t of other residual streams at (layer, query), the final LayerNorm live."""
        if self.token is None:
            return resid @ self.direction + self.constant
        logits, _ = exact.unembed(resid)
        return logits[..., self.token] - logits.mean(-1)


def feature_target(
    exact: ExactModel,
    dictionary: Dictionary,
    feature: int,
    query: int,
    label: str | None = None,
    kind: str = "feature",
) -> Target:
    """The pre-activation of a dictionary feature at tensor index `query`.

    Raises:
        InputError: the dictionary has no such feature.
    """
    name = feature_name(dictionary.layer, feature)
    if not 0 <= feature < dictionary.d_sae:
        raise InputError(
            f"Feature {name} does not exist: the dictionary of layer {dictionary.layer} has "
            f"features 0 to {dictionary.d_sae - 1}."
        )
    reader, constant = dictionary.reader(feature)
    direction = reader.to(exact.W_E)
    return Target(label or name, kind, dictionary.layer, query, direction, constant, feature)


def token_direction(
    exact: ExactModel, clean: Forward, token: int, query: int
) -> tuple[Float[Tensor, " d_model"], float]:
    """(e, c) of a token's logit minus the mean logit, the final LayerNorm's scale frozen."""
    column = exact.W_U[:, token] - exact.W_U.mean(1)
    scaled = column * exact.gamma_f / clean.scale_f[query]
    return scaled - scaled.mean(), float(exact.beta_f @ column)


def token_target(
    exact: ExactModel, clean: Forward, token: int, query: int, label: str, kind: str = "token"
) -> Target:
    """The logit of an output token minus the mean logit at tensor index `query`."""
    direction, constant = token_direction(exact, clean, token, query)
    return Target(label, kind, exact.n_layers, query, direction, constant, token=token)


def in_the_stream(dictionary: Dictionary) -> Dictionary:
    """The dictionary, if its features times decoder rows are parts of the stream.

    Raises:
        InputError: it normalises each token, so a decoder row is no direction of the stream.
    """
    if dictionary.normalize_activations != "none":
        raise InputError(
            f"The dictionary of layer {dictionary.layer} normalises each token "
            f'("{dictionary.normalize_activations}"), so its features are no parts of the stream '
            "that can be traced or changed one by one."
        )
    return dictionary


@torch.no_grad()
def activations(
    dictionary: Dictionary, resid: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_sae"]:
    """Feature activations, computed in the dictionary's own precision."""
    return dictionary.encode(resid.to(dictionary.W_enc))
