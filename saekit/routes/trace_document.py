"""The published schema of what `saekit trace --json` prints.  No torch."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict

from saekit.documents import DOCUMENT, json_schema
from saekit.routes.circuit import Circuit
from saekit.routes.intervention.outcomes import Outcome
from saekit.routes.variants.stability import Variants


@dataclass
class Further:
    """What a trace prints beside its circuit, if it was asked for."""

    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    interventions: list[Outcome] = field(default_factory=list)
    """only where interventions were asked for: what each did, and all together"""
    variants: Variants | None = None
    """only where variants were asked for: the same route on other prompts"""


def schema() -> dict[str, Any]:
    """The JSON schema of a circuit's document, with what may stand beside it."""
    circuit, further = json_schema(Circuit), json_schema(Further)
    for part in ("properties", "$defs"):
        circuit[part] |= further[part]
    return circuit
