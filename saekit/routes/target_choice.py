"""Which target a trace explains: the one asked for, or what the model is about to say.

Asked for: a feature (`8/1234`), a concept that the catalogue found at some layer, or an output
token, in this order.
Not asked for: an output concept of the catalogue that has the predicted token among its tokens;
else the feature at the last layer that adds most to that token's logit; else the logit itself.
A concept stands for its member that is most active at the query, at the deepest layer where any is.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from saekit.concepts.catalogue import Catalogue, Concept
from saekit.concepts.outputs import deviations
from saekit.coordinates import feature_name, parse_feature
from saekit.errors import InputError
from saekit.model.exact import ExactModel, Forward
from saekit.model.loading import LanguageModel
from saekit.routes.targets import (
    Target,
    activations,
    feature_target,
    token_direction,
    token_target,
)
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage.dictionary_set import DictionarySet

NEAREST = 3


def _plain(text: str) -> str:
    return text.strip().lower()


def _label(token: str) -> str:
    """A token's text without the spaces around it, where anything is left."""
    return token.strip() or token


class TargetChooser:
    """Finds the target of one prompt at one query position.

    Args:
        query: tensor index (BOS counted).
        position: the same as people count it, for messages.
        spans: concept spans on the prompt; a concept is present at the layers of its span.
    """

    def __init__(
        self,
        exact: ExactModel,
        clean: Forward,
        model: LanguageModel,
        dictionaries: DictionarySet,
        catalogue: Catalogue | None,
        query: int,
        position: int,
        spans: Sequence[Any] = (),
    ) -> None:
        self.exact, self.clean, self.model = exact, clean, model
        self.dictionaries, self.catalogue = dictionaries, catalogue
        self.query, self.position = query, position
        # (what an automatic target of no concept adds to its token's logit, that logit)
        self.spoken: tuple[float, float] | None = None
        self.concepts = list(catalogue.concepts) if catalogue is not None else []
        self._places: dict[str, set[int]] = defaultdict(set)
        for span in spans:
            self._places[span.name].add(span.position)
        self._spanned = {
            (span.name, layer)
            for span in spans
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

    def _activations(self, layer: int) -> torch.Tensor:
        return activations(self.dictionaries[layer], self.clean.resid[layer, self.query])

    def _feature(self, layer: int, feature: int) -> Target:
        dictionary = self.dictionaries[layer]
        target = feature_target(
            self.exact, dictionary, feature, self.query, self.concept_of(layer, feature)
        )
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

    def concept_of(self, layer: int, feature: int) -> str | None:
        """The concept that a feature is a member of."""
        return None if self.catalogue is None else self.catalogue.name_of(layer, feature)

    def _strongest_member(self, concept: Concept) -> tuple[int, int] | None:
        """(layer, feature): deepest layer where the concept is present, its strongest member.

        Present: the strength of the members reaches the catalogue's `threshold`, or the layer is in
        the concept's span here, so that what the circuit lists as present can be its target.
        """
        for score in sorted(concept.layers, key=lambda score: -score.layer):
            if not score.found or score.layer not in self.dictionaries.layers:
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
            self.exact, self.dictionaries[layer], feature, self.query, concept.name, "concept"
        )

    def _automatic(self) -> Target:
        token = int(self.clean.logits[self.query].argmax())
        text = self.model.vocabulary[token]
        for concept in self.concepts:
            tokens = {_plain(word) for word in (concept.name, *concept.tokens)}
            if concept.kind == "output" and _plain(text) in tokens:
                member = self._strongest_member(concept)
                if member is not None and member[0] > 0:
                    return self._concept(concept)
        last = self.dictionaries.layers[-1]
        if last > 0:
            dictionary = self.dictionaries[last]
            direction, _ = token_direction(self.exact, self.clean, token, self.query)
            written = dictionary.W_dec @ direction.to(dictionary.W_dec)
            contributions = self._activations(last) * written
            best = int(contributions.argmax())
            if contributions[best] > 0:
                whole = self._token(token).value(self.clean)
                self.spoken = (float(contributions[best]), whole)
                return feature_target(self.exact, dictionary, best, self.query, _label(text))
        return self._token(token)
