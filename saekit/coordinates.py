"""Names of places in a model: layers, hook points, heads, features, positions.

A *layer* is a residual point 0..n_layers: layer l < n_layers is `blocks.l.hook_resid_pre`, layer
n_layers is `blocks.{n_layers-1}.hook_resid_post`.  Heads are written `L9-H7` (both from 0),
features `8/1234` (layer/index).  *Positions* are 1-based and do not count the beginning-of-sequence
token, which is position 0: with a BOS in front, the tensor index is the position; without, it is
position - 1.
"""

import re

from saekit.errors import InputError

Head = tuple[int, int]
"""(layer, head), both from 0."""

_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_HEAD = re.compile(r"L?(\d+)[-.]H?(\d+)", re.IGNORECASE)
_FEATURE = re.compile(r"(\d+)/(\d+)")


def hook_name(layer: int, n_layers: int) -> str:
    """Hook point of a layer: `hook_name(3, 12) == "blocks.3.hook_resid_pre"`."""
    if not 0 <= layer <= n_layers:
        raise InputError(f"Layer {layer} does not exist: this model has layers 0 to {n_layers}.")
    if layer == n_layers:
        return f"blocks.{n_layers - 1}.hook_resid_post"
    return f"blocks.{layer}.hook_resid_pre"


def layer_of_hook(name: str) -> int:
    """Inverse of `hook_name`: `layer_of_hook("blocks.11.hook_resid_post") == 12`."""
    match = _HOOK.fullmatch(name)
    if not match:
        raise InputError(f'"{name}" is not a residual hook point such as blocks.3.hook_resid_pre.')
    return int(match[1]) + (match[2] == "post")


def head_name(layer: int, head: int) -> str:
    """`head_name(9, 7) == "L9-H7"`."""
    return f"L{layer}-H{head}"


def parse_head(text: str) -> tuple[int, int]:
    """`parse_head("L9-H7") == (9, 7)`; "9.7" is understood too."""
    match = _HEAD.fullmatch(text.strip())
    if not match:
        raise InputError(f'"{text}" is not a head; write it as L9-H7.')
    return int(match[1]), int(match[2])


def feature_name(layer: int, feature: int) -> str:
    """`feature_name(8, 1234) == "8/1234"`."""
    return f"{layer}/{feature}"


def parse_feature(text: str) -> tuple[int, int]:
    """`parse_feature("8/1234") == (8, 1234)`."""
    match = _FEATURE.fullmatch(text.strip())
    if not match:
        raise InputError(f'"{text}" is not a feature; write it as layer/index, for example 8/1234.')
    return int(match[1]), int(match[2])


def parse_layers(text: str | None, n_layers: int) -> list[int]:
    """A layer list such as `"0,3-5"` as sorted numbers; None means all n_layers + 1 layers."""
    if text is None or text == "all":
        return list(range(n_layers + 1))
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise InputError(f'"{text}" is not a list of layers; write it as 0,3-5.')
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= first <= last <= n_layers:
            raise InputError(
                f'Layers "{part.strip()}" are out of range: this model has 0 to {n_layers}.'
            )
        layers.update(range(first, last + 1))
    return sorted(layers)
