"""How far the numbers and the head set of a route are the same on many prompts.  No torch."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from saekit.documents import HeadText, Position, Share

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


@dataclass
class Measure:
    """One number over the variants."""

    median: float | None
    interval: Interval | None
    """95% bootstrap interval"""
    n: int
    refused: int
    """prompts on which the number is n/a"""


@dataclass
class HeadCount:
    """How often a head is in the set."""

    head: HeadText
    share: Share
    """of the variants"""


@dataclass
class Variants:
    """What `saekit.trace` says on many prompts."""

    n: Annotated[int, Field(ge=2)]
    """variants traced"""
    left_out: list[dict[str, str]]
    """prompt and reason of the others"""
    key: Position
    query: Position
    measures: dict[str, Measure]
    heads: list[HeadCount]
    """every head that is in any set, most frequent first, equal ones in reading order"""
    jaccard: Share | None
    """mean over all pairs of variants of |common heads| / |heads of either|"""
    jaccard_interval: Interval | None
    """its 95% bootstrap interval"""
    jaccard_random: Share | None
    """the same of random sets with as many heads in each layer"""
    rows: list[dict[str, Any]]
    """the numbers of each variant"""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)
