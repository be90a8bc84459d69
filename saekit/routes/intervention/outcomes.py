"""What interventions did to a prompt's prediction, as an object, as JSON and as a table.

Importing this module costs no torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

from saekit.routes.circuit import Prediction
from saekit.wording import number, percent

SHOWN_TOKENS = 3
SHOWN_FEATURES = 4


@dataclass
class RandomWrites:
    """The null: as many random features of the same dictionaries, changed by as much.

    Attributes:
        n: how many random writes were made.
        median_target: median of the target's value under them.
        share_below: share of them that move the target less far than the intervention did.
        same_top: share of them that leave the most probable token the same.
    """

    n: int
    median_target: float | None
    share_below: float | None
    same_top: float | None


@dataclass
class Outcome:
    """One intervention, or several made together.

    Attributes:
        change: as it was asked for; several are joined by " and ".
        positions: 1-based, BOS not counted.
        layers: first and last layer at which anything was written.
        features: the features that were held, written `8/1234`.
        target: what people read; the circuit's target.
        target_before, target_after: its pre-activation, or logit minus mean logit.
        before, after: the most probable next tokens.
        before_token: probability afterwards of what was the most probable token.
        random: the null.
        ceiling: for swaps, the next tokens when the whole stream is replaced at the same places.
    """

    change: str
    positions: list[int]
    layers: list[int]
    features: list[str]
    target: str
    target_before: float
    target_after: float
    before: list[Prediction]
    after: list[Prediction]
    before_token: float
    random: RandomWrites
    ceiling: list[Prediction] | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)


def _tokens(predictions: list[Prediction]) -> str:
    return "  ".join(
        "'" + p.token.replace("\n", "\\n") + f"' {percent(p.probability)}"
        for p in predictions[:SHOWN_TOKENS]
    )


def _numbers(values: list[int]) -> str:
    """`[0, 5]` is "0-5", `[3, 3]` is "3"."""
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}-{values[-1]}"


def _block(outcome: Outcome) -> list[str]:
    names = outcome.features
    shown = ", ".join(names[:SHOWN_FEATURES]) + ", ..." * (len(names) > SHOWN_FEATURES)
    positions = ", ".join(map(str, outcome.positions))
    random = outcome.random
    lines = [
        f"Change  {outcome.change}: {len(names)} feature{'s' * (len(names) != 1)} at position "
        f"{positions}, layer {_numbers(outcome.layers)} ({shown})",
        f"        {'next token before':<20}{_tokens(outcome.before)}",
        f"        {'after':<20}{_tokens(outcome.after)}",
    ]
    if outcome.ceiling is not None:
        lines.append(f"        {'whole stream moved':<20}{_tokens(outcome.ceiling)}")
    lines.append(
        f"        {outcome.target}: {number(outcome.target_before)} -> "
        f"{number(outcome.target_after)}; '{outcome.before[0].token}' "
        f"{percent(outcome.before[0].probability)} -> {percent(outcome.before_token)}"
    )
    if random.n:
        lines.append(
            f"        {random.n} random writes of the same size: median "
            f"{number(random.median_target)}, {percent(random.share_below)} move it less far, "
            f"{percent(random.same_top)} leave the next token"
        )
    return lines


def render_outcomes(outcomes: list[Outcome]) -> str:
    """Before and after of every intervention, for a terminal."""
    blocks = ["\n".join(_block(outcome)) for outcome in outcomes]
    foot = (
        "Features are held live at these layers, the rest of the stream stays; 'whole stream "
        "moved' replaces all of it and is the ceiling."
        if any(outcome.ceiling is not None for outcome in outcomes)
        else "Features are held live at these layers, the rest of the stream stays."
    )
    return "\n\n".join([*blocks, foot])
