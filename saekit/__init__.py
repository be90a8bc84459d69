"""saekit: dictionaries for every layer of GPT-2, concepts with layer spans, and their routes.

The public names are loaded on first use, so `import saekit` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load_model": "saekit.model.loading",
    "LanguageModel": "saekit.model.loading",
    "train": "saekit.sae.training",
    "TrainConfig": "saekit.sae.config",
    "DictionarySet": "saekit.sae.storage",
    "evaluate": "saekit.sae.evaluation",
    "FeatureIndex": "saekit.features.reader",
    "find_concepts": "saekit.concepts.finding",
    "trace": "saekit.routes.tracing",
    "Circuit": "saekit.routes.circuit",
    "score_heads": "saekit.heads.scoring",
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
    from saekit.features.reader import FeatureIndex as FeatureIndex
    from saekit.heads.scores import HeadScores as HeadScores
    from saekit.heads.scoring import score_heads as score_heads
    from saekit.model.loading import LanguageModel as LanguageModel
    from saekit.model.loading import load_model as load_model
    from saekit.routes.circuit import Circuit as Circuit
    from saekit.routes.tracing import trace as trace
    from saekit.sae.config import TrainConfig as TrainConfig
    from saekit.sae.evaluation import evaluate as evaluate
    from saekit.sae.storage import DictionarySet as DictionarySet
    from saekit.sae.training import train as train


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"saekit has no {name}")
    return getattr(import_module(_HOME[name]), name)
