"""What a trace explains: a number that is affine in the residual stream at one layer and position.

A dictionary feature's pre-activation p = x_L(q) . e + c has e = its column of W_enc and
c = b_enc - b_dec . e.  An output token's logit, minus the mean logit, has that form at the last
layer with the final LayerNorm's scale frozen: e = C (gamma_f (W_U[t] - mean W_U)) / sigma_f(q),
c = beta_f . (W_U[t] - mean W_U), where C centres.  For active features the activation equals the
pre-activation, and an ablation cannot evict it, so pre-activations are what is explained.

Asked for: a feature (`8/1234`), a concept that the catalogue found at some layer, or an output
token, in this order.
Not asked for: an output concept of the catalogue that has the predicted token among its tokens;
else the feature at the last layer that adds most to that token's logit; else the logit itself.
A concept stands for its member that is most active at the query, at the deepest layer where any is.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.concepts.catalogue import Concept
from saekit.concepts.outputs import deviations
from saekit.coordinates import feature_name, parse_feature
from saekit.errors import InputError
from saekit.model.exact import ExactModel, Forward
from saekit.routes.circuit_parts import Kind
from saekit.routes.prompt_run import PromptRun
from saekit.sae.dictionary import Dictionary

NEAREST = 3


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
        spoken: of a feature that was chosen because it says the predicted token best: what it adds
            to that token's centred logit, and the logit.
    """

    label: str
    kind: Kind
    layer: int
    query: int
    direction: Float[Tensor, " d_model"]
    constant: float
    feature: int | None = None
    token: int | None = None
    spoken: tuple[float, float] | None = None

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


def feature_target(
    exact: ExactModel,
    dictionary: Dictionary,
    feature: int,
    query: int,
    label: str | None = None,
    kind: Kind = "feature",
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
    reader, constant = in_the_stream(dictionary).reader(feature)
    direction = reader.to(exact.W_E)
    return Target(label or name, kind, dictionary.layer, query, direction, constant, feature)


def token_direction(
    exact: ExactModel, clean: Forward, token: int, query: int
) -> tuple[Float[Tensor, " d_model"], float]:
    """(e, c) of a token's logit minus the mean logit, the final LayerNorm's scale frozen."""
    column = exact.W_U[:, token] - exact.W_U.mean(1)
    scaled = column * exact.gamma_f / clean.scale_f[query]
    return exact.decoder.centred(scaled), float(exact.beta_f @ column)


def token_target(
    exact: ExactModel, clean: Forward, token: int, query: int, label: str, kind: Kind = "token"
) -> Target:
    """The logit of an output token minus the mean logit at tensor index `query`."""
    direction, constant = token_direction(exact, clean, token, query)
    return Target(label, kind, exact.n_layers, query, direction, constant, token=token)


def _plain(text: str) -> str:
    return text.strip().lower()


def _label(token: str) -> str:
    """A token's text without the spaces around it, where anything is left."""
    return token.strip() or token


class TargetChooser:
    """Finds the target at one position of a prompt."""

    def __init__(self, run: PromptRun, position: int) -> None:
        self.run, self.exact, self.clean, self.model = run, run.exact, run.clean, run.model
        self.position, self.query = position, run.index(position)
        self.predicted = run.top_token(self.query)
        self.concepts = list(run.catalogue.concepts) if run.catalogue is not None else []
        self._places: dict[str, set[int]] = defaultdict(set)
        for span in run.spans:
            self._places[span.name].add(span.position)
        self._spanned = {
            (span.name, layer)
            for span in run.spans
            if span.position == position
            for layer in range(span.first, span.last + 1)
        }

    def choose(self, wanted: str | None) -> Target:
        """The target named `wanted`, or the automatic one.

        Raises:
            InputError: unknown, not active at the query (the nearest active ones are named), or
                at layer 0, where nothing can have arrived.
        """
        target = self._automatic() if wanted is None else self._named(wanted)
        if target.layer == 0:
            raise InputError(
                f'"{target.label}" is at layer 0, before any attention head: '
                "choose a target at a higher layer."
            )
        return target

    def _named(self, wanted: str) -> Target:
        if re.fullmatch(r"\s*\d+/\d+\s*", wanted):
            return self._feature(*parse_feature(wanted))
        concept = next((c for c in self.concepts if _plain(c.name) == _plain(wanted)), None)
        if concept is not None and concept.found_layers:
            return self._concept(concept)
        for text in (wanted, f" {wanted}"):
            ids = self.model.tokens(text) if text.strip() else []
            if len(ids) == 1:
                return self._token(ids[0])
        if concept is not None:
            raise InputError(
                f'The concept "{concept.name}" was not found in these dictionaries, and its name '
                f"is not one token of {self.model.id}: name a feature such as 8/1234."
            )
        names = ", ".join(concept.name for concept in self.concepts) or "none are loaded"
        raise InputError(
            f'"{wanted}" is neither a concept ({names}), nor a feature such as 8/1234, '
            f"nor one token of {self.model.id}."
        )

    def _token(self, token: int) -> Target:
        label = _label(self.model.vocabulary[token])
        return token_target(self.exact, self.clean, token, self.query, label)

    def _activations(self, layer: int) -> Tensor:
        return activations(self.run.dictionaries[layer], self.clean.resid[layer, self.query])

    def _feature(self, layer: int, feature: int) -> Target:
        dictionary = self.run.dictionaries[layer]
        catalogue = self.run.catalogue
        concept = None if catalogue is None else catalogue.name_of(layer, feature)
        target = feature_target(self.exact, dictionary, feature, self.query, concept)
        acts = self._activations(layer)
        if acts[feature] < 0:
            raise InputError(
                f"Feature {feature_name(layer, feature)} is active with a negative value "
                f"({float(acts[feature]):.3g}) at position {self.position}: only what raises a "
                "feature can be traced."
            )
        if acts[feature] == 0:
            near = self._nearest_active(dictionary, feature, acts)
            names = ", ".join(feature_name(layer, other) for other in near) or "none"
            raise InputError(
                f"Feature {feature_name(layer, feature)} is not active at position "
                f"{self.position}; the most similar features active there are: {names}."
            )
        return target

    def _nearest_active(
        self, dictionary: Dictionary, feature: int, acts: torch.Tensor
    ) -> list[int]:
        active = acts.nonzero().flatten()
        columns = torch.nn.functional.normalize(dictionary.W_enc, dim=0)
        similarity = columns[:, active].T @ columns[:, feature]
        return active[similarity.argsort(descending=True)[:NEAREST]].tolist()

    def _strongest_member(self, concept: Concept) -> tuple[int, int] | None:
        """(layer, feature): deepest layer where the concept is present, its strongest member.

        Present: the strength of the members reaches the catalogue's `threshold`, or the layer is in
        the concept's span here, so that what the circuit lists as present can be its target.
        """
        for score in sorted(concept.layers, key=lambda score: -score.layer):
            if not score.found or score.layer not in self.run.dictionaries.layers:
                continue
            acts = self._activations(score.layer)[score.features].tolist()
            deviation = float(deviations(self.model, self.clean.resid[score.layer, self.query]))
            parts = score.strengths(acts, deviation)
            here = (concept.name, score.layer) in self._spanned
            strong = score.strength(acts, deviation) >= score.threshold
            if max(parts, default=0.0) > 0 and (here or strong):
                return score.layer, score.features[parts.index(max(parts))]
        return None

    def _concept(self, concept: Concept) -> Target:
        member = self._strongest_member(concept)
        if member is None:
            active = [other.name for other in self.concepts if self._strongest_member(other)]
            where = sorted(self._places[concept.name], key=lambda at: abs(at - self.position))
            raise InputError(
                f'The concept "{concept.name}" is not active at position {self.position}; '
                f"active there: {', '.join(active) or 'none of the catalogue'}; "
                f"{concept.name} is active at: {', '.join(map(str, where)) or 'no position'}."
            )
        layer, feature = member
        return feature_target(
            self.exact, self.run.dictionaries[layer], feature, self.query, concept.name, "concept"
        )

    def _automatic(self) -> Target:
        token = self.predicted
        text = self.model.vocabulary[token]
        for concept in self.concepts:
            tokens = {_plain(word) for word in (concept.name, *concept.tokens)}
            if concept.kind == "output" and _plain(text) in tokens:
                member = self._strongest_member(concept)
                if member is not None and member[0] > 0:
                    return self._concept(concept)
        last = max(self.run.dictionaries.layers, default=0)
        if last > 0:
            dictionary = self.run.dictionaries[last]
            direction, _ = token_direction(self.exact, self.clean, token, self.query)
            written = dictionary.W_dec @ direction.to(dictionary.W_dec)
            contributions = self._activations(last) * written
            best = int(contributions.argmax())
            if contributions[best] > 0:
                whole = self._token(token).value(self.clean)
                target = feature_target(self.exact, dictionary, best, self.query, _label(text))
                return replace(target, spoken=(float(contributions[best]), whole))
        return self._token(token)
