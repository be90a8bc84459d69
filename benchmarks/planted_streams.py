"""Residual streams whose features and their layers are known, and dictionaries of them.

Features are unit vectors, more of them alive at a layer than it has dimensions (superposition).
Each is born at one layer, dies at another, and turns by the same angle from layer to layer, in a
direction of its own.  Of ten features

    two    fire together (where one is active, the other is with probability 0.8) and have a cosine
           of about 0.4; in every second group the one is born where the other has just died
    three  are a parent and two children, active only where the parent is, tilted towards it
    five   are independent of all others

Dictionaries are the truth as training would spoil it (`planted_dictionaries`): rows and activations
with noise, missed and false activations, features split in two, parents absorbed by their children,
features that were not learned at all at a layer, dead ones, the layer's own, and two kinds of
impostors: the direction of a feature with its activations displaced in time, and its activations
with a random direction.  Or they are trained on the streams themselves (benchmarks/spans.py).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import csc_array

GROUP, TOGETHER, CHILD, TILT = 10, 0.8, 0.4, 0.4
NULLS = ("independent", "directions", "activations")  # what neighbouring layers do not share
SEED = 4_321_000  # far from the seeds of training


@dataclass(frozen=True)
class Plan:
    """What is planted.

    Attributes:
        degrees: every feature turns by this angle between neighbouring layers.
        rates: lowest and highest share of positions at which a feature is active.
        null: one of `NULLS`: every layer is drawn anew (only the directions, only the activations).
    """

    layers: int = 10
    features: int = 300
    d_in: int = 64
    positions: int = 20_000
    degrees: float = 0.0
    rates: tuple[float, float] = (0.004, 0.03)
    whole: float = 0.1  # share of features that live at all layers
    seed: int = 0
    null: str | None = None


@dataclass(frozen=True)
class Spoiling:
    """How far dictionaries are from the truth; shares of a layer's living features."""

    row_noise: float = 0.3  # length of what is added to a unit row
    value_noise: float = 0.3
    missed: float = 0.1  # of a feature's activations
    false: float = 0.1  # as many as this share of a feature's activations
    split: float = 0.08
    absorbed: float = 0.5  # of the parents
    unlearned: float = 0.02
    impostors: float = 0.05  # of each kind
    dead: float = 0.1
    own: float = 0.2


@dataclass
class Streams:
    """Directions [layer, feature, d_in], activations [layer][position, feature], and who lives
    where."""

    plan: Plan
    birth: np.ndarray
    death: np.ndarray  # the last layer
    parent: np.ndarray  # of each feature, -1 without
    directions: np.ndarray
    active: list[np.ndarray]

    def alive(self, layer: int) -> np.ndarray:
        """Features of a layer."""
        return np.flatnonzero((self.birth <= layer) & (layer <= self.death))

    def stream(self, layer: int, noise: float, rng: np.random.Generator) -> np.ndarray:
        """x [position, d_in]: every living feature's direction times its activation, and noise."""
        x = self.active[layer] @ self.directions[layer]
        return (x + noise * rng.standard_normal(x.shape) / np.sqrt(x.shape[1])).astype(np.float32)


@dataclass
class Dictionaries:
    """What matching is given, and the truth that it is not given.

    Attributes:
        activations, decoders: per layer, as `saekit.concepts.matching.match_layers` takes them.
        identity: per layer and unit, the planted features it stands for: none, one, or, if training
            merged some, several; the one it stands for most comes first.
    """

    activations: dict[int, csc_array] = field(default_factory=dict)
    decoders: dict[int, torch.Tensor] = field(default_factory=dict)
    identity: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)

    def add(
        self, layer: int, active: csc_array, rows: torch.Tensor, identity: list[tuple[int, ...]]
    ) -> None:
        self.activations[layer], self.decoders[layer] = active, rows
        self.identity[layer] = identity


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _fires(plan: Plan, parent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Activations [position, feature] of one draw."""
    low, high = np.log(plan.rates)
    rates = np.exp(rng.uniform(low, high, plan.features))
    on = rng.random((plan.positions, plan.features)) < rates
    for first in range(0, plan.features - GROUP + 1, GROUP):
        both = on[:, first] & (rng.random(plan.positions) < TOGETHER)
        alone = rates[first] * (1 - TOGETHER)
        on[:, first + 1] = both | (~on[:, first] & (rng.random(plan.positions) < alone))
    for child in np.flatnonzero(parent >= 0):
        on[:, child] = on[:, parent[child]] & (rng.random(plan.positions) < CHILD)
    return (on * rng.uniform(1, 3, on.shape)).astype(np.float32)


def _directions(plan: Plan, parent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = unit(rng.standard_normal((plan.features, plan.d_in)))
    children = np.flatnonzero(parent >= 0)
    drawn[children] = unit(drawn[children] + TILT * drawn[parent[children]])
    ones = np.arange(0, plan.features - GROUP + 1, GROUP)
    drawn[ones + 1] = unit(drawn[ones + 1] + TILT * drawn[ones])
    return drawn


def plant(plan: Plan) -> Streams:
    """Streams of a plan, decided by its seed."""
    rng = np.random.default_rng(SEED + plan.seed)
    n = plan.features
    birth = rng.integers(0, plan.layers, n)
    death = rng.integers(birth, plan.layers)
    through = rng.random(n) < plan.whole
    birth[through], death[through] = 0, plan.layers - 1
    parent = np.full(n, -1)
    for first in range(0, n - GROUP + 1, 2 * GROUP):  # an heir
        death[first] = rng.integers(birth[first], plan.layers)
        birth[first + 1] = min(death[first] + 1, plan.layers - 1)
        death[first + 1] = rng.integers(birth[first + 1], plan.layers)
    for first in range(0, n - GROUP + 1, GROUP):
        parent[first + 3 : first + 5] = first + 2
        for child in (first + 3, first + 4):  # a child without its parent is no child
            birth[child] = max(birth[child], birth[first + 2])
            death[child] = min(max(death[child], birth[child]), death[first + 2])
            birth[child] = min(birth[child], death[child])
    directions, active = [_directions(plan, parent, rng)], [_fires(plan, parent, rng)]
    angle = np.deg2rad(plan.degrees)
    for _ in range(1, plan.layers):
        before = directions[-1]
        turn = rng.standard_normal(before.shape)
        turn = unit(turn - (turn * before).sum(1, keepdims=True) * before)
        turned = np.cos(angle) * before + np.sin(angle) * turn
        anew = plan.null in ("independent", "directions")
        directions.append(_directions(plan, parent, rng) if anew else turned)
        anew = plan.null in ("independent", "activations")
        active.append(_fires(plan, parent, rng) if anew else active[-1])
    streams = Streams(plan, birth, death, parent, np.stack(directions), active)
    for layer in range(plan.layers):
        living = np.zeros(n, bool)
        living[streams.alive(layer)] = True
        streams.active[layer] = streams.active[layer] * living
    return streams


def planted_dictionaries(streams: Streams, spoiling: Spoiling | None = None) -> Dictionaries:
    """Dictionaries of the streams without training: the truth, spoiled."""
    spoiling = spoiling or Spoiling()
    rng = np.random.default_rng(SEED + 500_000 + streams.plan.seed)
    found = Dictionaries()
    for layer in range(streams.plan.layers):
        found.add(layer, *_spoiled(streams, layer, spoiling, rng))
    return found


def _spoiled(
    streams: Streams, layer: int, spoiling: Spoiling, rng: np.random.Generator
) -> tuple[csc_array, torch.Tensor, list[tuple[int, ...]]]:
    n, d = streams.plan.positions, streams.plan.d_in
    alive, active = streams.alive(layer), streams.active[layer]
    columns: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    identity: list[tuple[int, ...]] = []

    def add(values: np.ndarray, row: np.ndarray, *features: int) -> None:
        columns.append(values)
        rows.append(row)
        identity.append(features)

    def some(share: float) -> np.ndarray:
        return rng.choice(alive, round(share * len(alive)), replace=False)

    absorbing = {int(p) for p in alive if rng.random() < spoiling.absorbed}
    for feature in alive:
        if rng.random() < spoiling.unlearned:
            continue
        values, row = active[:, feature].copy(), streams.directions[layer, feature]
        if feature in absorbing:  # silent where a child is active ...
            children = [c for c in alive if streams.parent[c] == feature]
            values[(active[:, children] > 0).any(1)] = 0
        if streams.parent[feature] in absorbing:  # ... which does its work
            row = unit(row + 0.5 * streams.directions[layer, streams.parent[feature]])
        if rng.random() < spoiling.split:
            part = rng.random(n) < 0.6
            add(values * part, row, int(feature))
            add(values * ~part, row, int(feature))
        else:
            add(values, row, int(feature))
    for values in columns:  # missed and false activations
        on = np.flatnonzero(values)
        values[on[rng.random(len(on)) < spoiling.missed]] = 0
        values[rng.integers(0, n, round(spoiling.false * len(on)))] = 0.5
    for feature in some(spoiling.impostors):
        shift = int(rng.integers(n // 10, n - n // 10))
        add(np.roll(active[:, feature], shift), streams.directions[layer, feature])
    for feature in some(spoiling.impostors):
        add(active[:, feature], rng.standard_normal(d))
    for _ in range(round(spoiling.own * len(alive))):
        add((rng.random(n) < 0.01) * rng.uniform(1, 3, n), rng.standard_normal(d))
    for _ in range(round(spoiling.dead * len(alive))):
        add(np.zeros(n), rng.standard_normal(d))

    order = rng.permutation(len(rows))
    dense = np.stack(columns, 1)[:, order]
    dense *= np.clip(1 + spoiling.value_noise * rng.standard_normal(dense.shape), 0.1, None)
    noise = spoiling.row_noise * rng.standard_normal((len(rows), d)) / np.sqrt(d)
    decoder = torch.tensor((unit(np.stack(rows)) + noise)[order], dtype=torch.float32)
    return csc_array(dense.astype(np.float32)), decoder, [identity[at] for at in order]
