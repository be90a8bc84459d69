"""Hold dictionary features at chosen values while the model runs; everything else stays live.

At a layer and position where features S are held at values v, the stream x becomes

    x + sum over S of (v_s - f_s(x)) W_dec[s]

with f(x) the activations at that moment, after the writes at lower layers.  The other features and
what the dictionary does not reconstruct stay what they are.  Positions before the first write and
layers below it keep their clean values.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.coordinates import feature_name
from saekit.errors import InputError
from saekit.model.exact import Edits, ExactModel, Forward
from saekit.routes.target import activations, in_the_stream
from saekit.sae.storage.dictionary_set import DictionarySet

Place = tuple[int, int]  # layer, tensor index of the position
Edit = Callable[[int, Float[Tensor, "batch window d_model"]], None]


@dataclass(frozen=True)
class Clamp:
    """Features of one layer that are held at `values` at one position (a tensor index)."""

    layer: int
    position: int
    features: Int[Tensor, " feature"]
    values: Float[Tensor, " feature"]

    def names(self) -> list[str]:
        """The features, written `8/1234`."""
        return [feature_name(self.layer, feature) for feature in self.features.tolist()]


@dataclass(frozen=True)
class Write:
    """What holding features wrote at one place: changes of activation, and the vector."""

    features: Int[Tensor, " feature"]
    changes: Float[Tensor, " feature"]
    vector: Float[Tensor, " d_model"]


def merged(clamps: Iterable[Clamp]) -> dict[Place, Clamp]:
    """One clamp per place.

    Raises:
        InputError: a feature is to be held at two values at once.
    """
    values: dict[Place, dict[int, float]] = {}
    for clamp in clamps:
        here = values.setdefault((clamp.layer, clamp.position), {})
        for feature, value in zip(clamp.features.tolist(), clamp.values.tolist(), strict=True):
            if here.setdefault(feature, value) != value:
                raise InputError(
                    f"Feature {feature_name(clamp.layer, feature)} is asked to be "
                    f"{here[feature]:.3g} and {value:.3g} at once: leave one change out."
                )
    return {
        (layer, position): Clamp(
            layer, position, torch.tensor(list(here)), torch.tensor(list(here.values()))
        )
        for (layer, position), here in values.items()
        if here
    }


@torch.no_grad()
def live(
    exact: ExactModel,
    clean: Forward,
    query: int,
    places: Iterable[Place],
    edit: Edit,
    batch: int = 1,
) -> Float[Tensor, "batch layer_plus_one d_model"]:
    """The stream at `query` (a tensor index) at every layer, with edits made on the way.

    Args:
        places: where `edit` changes anything; the window starts at their first position.
        edit: called as edit(layer, x) at every layer from the lowest place on; changes x, the
            stream at the window's positions, in place.
    """
    start = min(layer for layer, _ in places)
    first = min(position for _, position in places)
    x = clean.resid[start, first : query + 1].repeat(batch, 1, 1)
    streams = clean.resid[:, query].repeat(batch, 1, 1)
    for m in range(start, exact.n_layers + 1):
        edit(m, x)
        streams[:, m] = x[:, -1]
        if m < exact.n_layers:
            x = exact.rerun(clean, Edits(), (first, query), m, m + 1, resid=x)
    return streams


def with_features_held(
    exact: ExactModel,
    clean: Forward,
    dictionaries: DictionarySet,
    clamps: Mapping[Place, Clamp],
    query: int,
) -> tuple[Float[Tensor, "layer_plus_one d_model"], dict[Place, Write]]:
    """(the stream at `query` at every layer, what was written where)."""
    written: dict[Place, Write] = {}
    first = min(position for _, position in clamps)

    def edit(layer: int, x: Tensor) -> None:
        for (at, position), clamp in clamps.items():
            if at != layer:
                continue
            dictionary = in_the_stream(dictionaries[layer])
            here = x[0, position - first]
            changes = clamp.values - activations(dictionary, here)[clamp.features].cpu()
            vector = (changes.to(dictionary.W_dec) @ dictionary.W_dec[clamp.features]).to(x)
            here += vector
            written[layer, position] = Write(clamp.features, changes, vector)

    streams = live(exact, clean, query, clamps, edit)
    return streams[0], written


def with_random_writes(
    exact: ExactModel,
    clean: Forward,
    dictionaries: DictionarySet,
    written: Mapping[Place, Write],
    query: int,
    count: int,
    seed: int,
) -> Float[Tensor, "count layer_plus_one d_model"]:
    """The null: at the same places as many other features, drawn at random, are changed by the
    same amounts; each sum is scaled to the length of what was written there."""
    generator = torch.Generator().manual_seed(seed)
    first = min(position for _, position in written)
    vectors: dict[Place, Tensor] = {}
    for (layer, position), write in written.items():
        rows = dictionaries[layer].W_dec
        allowed = torch.ones(len(rows))
        allowed[write.features] = 0
        moved = write.changes[write.changes != 0]
        if allowed.sum() < len(moved):  # a tiny dictionary: any of its features
            allowed[:] = 1
        sums = torch.zeros(count, rows.shape[1])
        for row in range(count if len(moved) else 0):
            drawn = torch.multinomial(allowed, len(moved), generator=generator)
            sums[row] = moved.float() @ rows[drawn].float().cpu()
        lengths = sums.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        vectors[layer, position] = sums / lengths * float(write.vector.norm())

    def edit(layer: int, x: Tensor) -> None:
        for (at, position), vector in vectors.items():
            if at == layer:
                x[:, position - first] += vector.to(x)

    return live(exact, clean, query, vectors, edit, count)


def with_other_stream(
    exact: ExactModel, clean: Forward, other: Forward, places: Iterable[Place], query: int
) -> Float[Tensor, "layer_plus_one d_model"]:
    """The ceiling of a swap: the whole stream of another prompt at the same places."""
    there = list(places)
    first = min(position for _, position in there)

    def edit(layer: int, x: Tensor) -> None:
        for at, position in there:
            if at == layer:
                x[:, position - first] = other.resid[layer, position]

    return live(exact, clean, query, there, edit)[0]
