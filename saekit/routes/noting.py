"""What must be said beside a circuit's numbers."""

from saekit.routes.circuit import Circuit
from saekit.routes.wording import number, percent

ERROR_SHARE = 0.3  # above, features explain too little of what is carried
BOS_SHARE = 0.1


def notes(circuit: Circuit) -> list[str]:
    """One sentence per fact a reader needs: always two, the others where they apply."""
    chosen, p = circuit.set, circuit.target.preactivation
    lines = [
        "One prompt is one anecdote: the numbers are about this prompt only.",
        "Attribution is not causation: shares say what was carried in this forward pass; "
        "only drops and causal shares come from an intervention.",
    ]
    if circuit.model == "gpt2-mini":
        lines.append("gpt2-mini is a model organism: nothing here is a claim about GPT-2.")
    if not chosen.heads:
        lines.append(f"No head carries anything positive from position {circuit.key}.")
    elif chosen.share_positive is None:
        lines.append(
            "The positive share is refused: what arrives from other positions is less than a "
            "tenth of the target."
        )
    if chosen.heads and chosen.share_causal is None:
        lines.append(
            f"The causal share is refused: removing all edges moves the target by only "
            f"{number(circuit.all_edges_drop)}."
        )
    elif chosen.share_causal is not None:
        raw = chosen.joint_drop / circuit.all_edges_drop
        if not 0 <= raw <= 1:
            lines.append(f"The causal share was cut to [0, 1]: uncut it is {percent(raw)}.")
    if chosen.heads and chosen.joint_drop > 1.1 * max(chosen.sum_of_single_drops, 0) > 0:
        lines.append(
            "The heads are redundant: together they matter more "
            f"({number(chosen.joint_drop)}) than one by one ({number(chosen.sum_of_single_drops)})."
        )
    negative = sum(row.negative for row in circuit.arrivals if row.position > 0)
    if negative < -abs(p) / 10:
        lines.append(f"Edges that work against the target add up to {number(negative)}.")
    bos = next((row for row in circuit.arrivals if row.position == 0), None)
    if bos is not None and abs(bos.net) > BOS_SHARE * abs(p):
        lines.append(
            f"The beginning-of-sequence token adds {number(bos.net)}; it counts in no share."
        )
    if circuit.error_node_share is not None and circuit.error_node_share > ERROR_SHARE:
        lines.append(
            f"The dictionaries miss {percent(circuit.error_node_share)} of what the heads read "
            "at the key: the features listed there are not an explanation."
        )
    if circuit.patterns is None:
        lines.append("Attention maps are stored for prompts of up to 64 tokens only.")
    return lines
