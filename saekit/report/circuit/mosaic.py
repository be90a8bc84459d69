"""Attention maps as one PNG: blue cells, the chosen edge red.

Maps are drawn key to the right and query upwards.  Colours carry the weight in the alpha channel,
so that one image fits a light and a dark page.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

POOL_LIMIT = 32  # cells a side of a small map: more could not be told apart at 30 pixels
_MAP_PIXELS = 24  # short maps are enlarged, so that the gap between maps is thin beside them
_GAP = 2
_RED_FLOOR = 0.35  # the chosen cell can be found even where its weight is small
_GRID = (128, 136, 150, 70)


def png(rgba: np.ndarray) -> bytes:
    """Encode [height, width, 4] uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(rgba).save(out, "PNG", optimize=True)
    return out.getvalue()


def data_uri(image: bytes) -> str:
    """A PNG as the value of an `href`."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def pool_size(n: int, limit: int = POOL_LIMIT) -> int:
    """Tokens per cell of a max-pooled map; 1 when the map is drawn in full."""
    return max(1, -(-n // limit))


def max_pool(maps: np.ndarray, block: int) -> np.ndarray:
    """Largest weight of each block x block square of [..., q, k]."""
    if block == 1:
        return maps
    n = maps.shape[-1]
    padding = -n % block
    lead = [(0, 0)] * (maps.ndim - 2)
    padded = np.pad(maps, [*lead, (0, padding), (0, padding)])
    cells = padded.shape[-1] // block
    return padded.reshape(*maps.shape[:-2], cells, block, cells, block).max(axis=(-3, -1))


def colour_map(
    weights: np.ndarray,
    edge: tuple[int, int] | None,
    blue: tuple[int, int, int],
    red: tuple[int, int, int],
) -> np.ndarray:
    """RGBA of maps [..., q, k]: alpha is the weight; the cell `edge` (query, key; from 0) is red.

    The query axis is reversed: row 0 of the image is the last query.
    """
    weights = np.clip(np.nan_to_num(weights), 0, 1)
    rgba = np.empty((*weights.shape, 4), dtype=np.uint8)
    rgba[..., :3] = blue
    rgba[..., 3] = np.round(255 * weights)
    if edge is not None:
        query, key = edge
        chosen = weights[..., query, key]
        rgba[..., query, key, :3] = red
        rgba[..., query, key, 3] = np.round(255 * (_RED_FLOOR + (1 - _RED_FLOOR) * chosen))
    return rgba[..., ::-1, :, :]


def _enlarged(rgba: np.ndarray) -> np.ndarray:
    scale = -(-_MAP_PIXELS // rgba.shape[-2])
    return rgba.repeat(scale, axis=-3).repeat(scale, axis=-2)


def mosaic(
    patterns: Sequence[Sequence[Sequence[Sequence[float]]]],
    edge: tuple[int, int] | None,
    blue: tuple[int, int, int],
    red: tuple[int, int, int],
) -> tuple[bytes, int]:
    """One PNG of all maps [n_layers, n_heads, q, k] and the pooling block that was used.

    Heads go to the right, layers upwards; `edge` is (query, key) from 0.
    """
    maps = np.asarray(patterns, dtype=np.float32)
    block = pool_size(maps.shape[-1])
    pooled_edge = None if edge is None else (edge[0] // block, edge[1] // block)
    tiles = _enlarged(colour_map(max_pool(maps, block), pooled_edge, blue, red))
    n_layers, n_heads, side = tiles.shape[:3]
    step = side + _GAP
    image = np.empty((n_layers * step + _GAP, n_heads * step + _GAP, 4), dtype=np.uint8)
    image[:] = _GRID
    for layer in range(n_layers):
        top = _GAP + (n_layers - 1 - layer) * step
        for head in range(n_heads):
            left = _GAP + head * step
            image[top : top + side, left : left + side] = tiles[layer, head]
    return png(image), block


def single_map(
    pattern: Sequence[Sequence[float]],
    edge: tuple[int, int] | None,
    blue: tuple[int, int, int],
    red: tuple[int, int, int],
) -> bytes:
    """PNG of one map [q, k], one cell per token pair."""
    return png(_enlarged(colour_map(np.asarray(pattern, dtype=np.float32), edge, blue, red)))
