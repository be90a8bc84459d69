"""saekit: dictionaries for every layer of a language model, concepts with spans, and their routes.

The public names are loaded on first use, so `import saekit` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "__version__": "saekit.version",
    "load_model": "saekit.model.loading",
    "LanguageModel": "saekit.model.loading",
    "train": "saekit.sae.training.trainer",
    "TrainConfig": "saekit.sae.training.config",
    "DictionarySet": "saekit.sae.storage.dictionary_set",
    "evaluate": "saekit.sae.evaluation",
    "FeatureIndex": "saekit.features.index.feature_index",
    "find_concepts": "saekit.concepts.finding",
    "trace": "saekit.routes.trace",
    "Circuit": "saekit.routes.circuit",
    "score_heads": "saekit.heads.static_scores",
    "HeadScores": "saekit.heads.scores",
}
__all__ = [
    "Circuit",
    "DictionarySet",
    "FeatureIndex",
    "HeadScores",
    "LanguageModel",
    "TrainConfig",
    "__version__",
    "evaluate",
    "find_concepts",
    "load_model",
    "score_heads",
    "trace",
    "train",
]

if TYPE_CHECKING:
    from saekit.concepts.finding import find_concepts as find_concepts
    from saekit.features.index.feature_index import FeatureIndex as FeatureIndex
    from saekit.heads.scores import HeadScores as HeadScores
    from saekit.heads.static_scores import score_heads as score_heads
    from saekit.model.loading import LanguageModel as LanguageModel
    from saekit.model.loading import load_model as load_model
    from saekit.routes.circuit import Circuit as Circuit
    from saekit.routes.trace import trace as trace
    from saekit.sae.evaluation import evaluate as evaluate
    from saekit.sae.storage.dictionary_set import DictionarySet as DictionarySet
    from saekit.sae.training.config import TrainConfig as TrainConfig
    from saekit.sae.training.trainer import train as train
    from saekit.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"saekit has no {name}")
    return getattr(import_module(_HOME[name]), name)
