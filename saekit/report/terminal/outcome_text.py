"""Interventions as text: what was changed, and the prediction before and after."""

from saekit.routes.circuit_parts import Prediction
from saekit.routes.intervention.outcomes import Outcome
from saekit.wording import number, percent

SHOWN_TOKENS = 3
SHOWN_FEATURES = 4


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
