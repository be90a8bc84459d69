"""Which features are active together: correlations in the same layer and with the next one.

A bounded, evenly spread part of the text is kept with all activations; Pearson correlations of the
features' activations (zeros included) are taken over its positions at the end.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from saekit.features.index.statistics import best_of_each

POSITIONS = 2**15  # kept: a feature of density 0.001 has 33 of them
MIN_JOINT = 5  # positions at which both are active, below which a correlation is one coincidence
RELATIVES = 2  # per feature in the same, and in the next layer
MIN_CORRELATION = 0.1  # below, features are no relatives; most pairs are, and need no sorting
_CANDIDATES = 8
_BLOCK = 1024


class KeptRows:
    """Every 2^n-th row of text with the activations of all layers; n grows with the text.

    Args:
        sizes: features of each layer.
        positions: at most about so many positions are kept.
    """

    def __init__(self, sizes: list[int], positions: int = POSITIONS):
        self.sizes, self.limit, self.stride = sizes, positions, 1
        self.rows: list[list[tuple[np.ndarray, np.ndarray]]] = []  # [row][layer]
        self.numbers: list[int] = []
        self.lengths: list[int] = []

    def offer(
        self,
        first_row: int,
        counted: Bool[np.ndarray, "row pos"],
        layers: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """Take some rows of a chunk.

        Args:
            first_row: number of the first row in the whole text.
            counted: where a token counts (no BOS).
            layers: per layer values and features, [row, pos, k].
        """
        for at in np.flatnonzero((np.arange(len(counted)) + first_row) % self.stride == 0):
            here = counted[at]
            self.rows.append([(v[at][here].copy(), f[at][here].copy()) for v, f in layers])
            self.numbers.append(int(first_row + at))
            self.lengths.append(int(here.sum()))
        while sum(self.lengths) > self.limit and len(self.rows) > 1:
            self.stride *= 2
            stay = [i for i, number in enumerate(self.numbers) if number % self.stride == 0]
            for name in ("rows", "numbers", "lengths"):
                column = getattr(self, name)
                setattr(self, name, [column[i] for i in stay])

    def state(self) -> dict[str, np.ndarray]:
        """Everything kept, as arrays (see `restore`)."""
        state = {
            "stride": np.array(self.stride),
            "numbers": np.array(self.numbers, np.int64),
            "lengths": np.array(self.lengths, np.int64),
        }
        for slot in range(len(self.sizes)):
            for place, name in enumerate(("values", "features")):
                arrays = [row[slot][place] for row in self.rows]
                state[f"{slot}/{name}"] = np.concatenate([a.ravel() for a in arrays] or [()])
                state[f"{slot}/width"] = np.array([a.shape[-1] for a in arrays], np.int64)
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Inverse of `state`."""
        self.stride = int(state["stride"])
        self.numbers, self.lengths = state["numbers"].tolist(), state["lengths"].tolist()
        self.rows = [[] for _ in self.numbers]
        for slot in range(len(self.sizes)):
            widths = state[f"{slot}/width"]
            ends = np.cumsum(widths * state["lengths"])[:-1]
            columns = [np.split(state[f"{slot}/{name}"], ends) for name in ("values", "features")]
            for row, width, values, features in zip(self.rows, widths, *columns, strict=True):
                shape = (-1, int(width))
                row.append((values.reshape(shape), features.reshape(shape)))

    def matrix(self, slot: int) -> csr_array:
        """Activations of one layer, [position, feature]."""
        values = [row[slot][0].reshape(length, -1) for row, length in self._pairs()]
        features = [row[slot][1].reshape(length, -1) for row, length in self._pairs()]
        active = [value > 0 for value in values]
        counts = np.concatenate([a.sum(-1) for a in active]) if active else np.zeros(0, np.int64)
        data = [v[a] for v, a in zip(values, active, strict=True)]
        column = [f[a] for f, a in zip(features, active, strict=True)]
        return csr_array(
            (
                np.concatenate(data) if data else np.zeros(0, np.float32),
                np.concatenate(column) if column else np.zeros(0, np.int32),
                np.concatenate([[0], np.cumsum(counts)]),
            ),
            shape=(len(counts), self.sizes[slot]),
        )

    def _pairs(self) -> list[tuple[list[tuple[np.ndarray, np.ndarray]], int]]:
        return list(zip(self.rows, self.lengths, strict=True))


def _shape(activations: csr_array) -> tuple[int, int]:
    rows, columns = activations.shape  # type: ignore[misc]
    return int(rows), int(columns)


def _standardised(activations: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature (1 for a feature that never is active)."""
    n = max(1, _shape(activations)[0])
    mean = np.asarray(activations.sum(0), np.float64) / n
    square = np.asarray(activations.multiply(activations).sum(0), np.float64) / n
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return mean, np.where(deviation > 0, deviation, 1)


def correlated(
    left: csr_array, right: csr_array, limit: int = RELATIVES, same: bool = False
) -> tuple[Int[np.ndarray, "left limit"], Float[np.ndarray, "left limit"]]:
    """The features of `right` that correlate most with each of `left`.

    Args:
        left, right: activations at the same positions.
        limit: how many.
        same: they are one layer: a feature is no relative of itself.

    Returns:
        Features and Pearson correlations, highest first; correlation 0 where there is no other
        with at least `MIN_CORRELATION` and `MIN_JOINT` positions of joint activity.
    """
    n_positions, d_sae = _shape(left)
    n = max(1, n_positions)
    (mean_l, dev_l), (mean_r, dev_r) = _standardised(left), _standardised(right)
    by_column = left.tocsc()
    found = np.zeros((d_sae, limit), np.int64)
    value = np.zeros((d_sae, limit))
    for start in range(0, d_sae, _BLOCK):
        part = by_column[:, start : start + _BLOCK]
        product = (part.T @ right).tocoo()
        i, j = product.coords
        r = (product.data / n - mean_l[start + i] * mean_r[j]) / (dev_l[start + i] * dev_r[j])
        keep = (r >= MIN_CORRELATION) & ~(same & (start + i == j))
        i, j, r = i[keep], j[keep], r[keep]
        chosen, _ = best_of_each(i, r, _CANDIDATES)
        i, j, r = i[chosen], j[chosen], r[chosen]
        joint = _joint(part, right, i, j)
        i, j, r = (column[joint >= MIN_JOINT] for column in (i, j, r))
        chosen, rank = best_of_each(i, r, limit)
        found[start + i[chosen], rank], value[start + i[chosen], rank] = j[chosen], r[chosen]
    return found, value


def _joint(left: csr_array, right: csr_array, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """At how many positions both features of each pair are active."""
    if not len(i):
        return np.zeros(0, np.int64)
    a, b = left.tocsc()[:, i], right.tocsc()[:, j]
    a.data, b.data = np.ones_like(a.data), np.ones_like(b.data)
    return np.asarray(a.multiply(b).sum(0)).astype(np.int64)
