"""The residual stream of all layers: computed in one pass, read from a cache, shuffled."""

from saekit.activations.cache.cache_writer import write_cache
from saekit.activations.cache.cached_activations import CachedActivations
from saekit.activations.residuals import (
    check_layers,
    embed,
    final_norm,
    residuals,
    run_blocks,
    unembed,
)
from saekit.activations.rows import (
    Text,
    TextRows,
    check_length,
    context_rows,
    documents_of,
    texts_of,
)
from saekit.activations.shuffle import ShuffleBuffer
from saekit.activations.sources import ActivationSource, ModelActivations

__all__ = [
    "ActivationSource",
    "CachedActivations",
    "ModelActivations",
    "ShuffleBuffer",
    "Text",
    "TextRows",
    "check_layers",
    "check_length",
    "context_rows",
    "documents_of",
    "embed",
    "final_norm",
    "residuals",
    "run_blocks",
    "texts_of",
    "unembed",
    "write_cache",
]
