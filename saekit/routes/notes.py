"""What must be said beside a circuit's numbers."""

from saekit.routes.circuit import Circuit
from saekit.sae.storage.dictionary_set import NONE
from saekit.wording import number, percent

ERROR_SHARE = 0.3  # above, features explain too little of what is carried
BOS_SHARE = 0.1
SURE = 0.5  # a most probable next token below this is a guess of the model


def notes(
    circuit: Circuit, automatic_key: bool = False, spoken: tuple[float, float] | None = None
) -> list[str]:
    """One sentence per fact a reader needs: always two, the others where they apply.

    Args:
        automatic_key: whether the key was chosen by what arrives from it; then it is said how.
        spoken: of a target that is the feature which says the predicted token best: what it adds to
            that token's centred logit, and the logit.
    """
    chosen, p = circuit.set, circuit.target.preactivation
    lines = [
        "One prompt is one anecdote: the numbers are about this prompt only.",
        "Attribution is not causation: only drops and causal shares come from an intervention.",
    ]
    if circuit.model == "gpt2-mini":
        lines.append("gpt2-mini is a model organism: nothing here is a claim about GPT-2.")
    if circuit.prediction and circuit.prediction[0].probability < SURE:
        top = circuit.prediction[0]
        lines.append(
            f"The most probable next token, {_quoted(top.token)}, has only "
            f"{percent(top.probability)}: the model is guessing here."
        )
    if spoken is not None:
        lines.append(
            f"{_quoted(circuit.target.concept)} is no concept found on text but the name of "
            f"feature {circuit.target.feature}, which adds more to that token's logit than any "
            f"other of its layer: {number(spoken[0])} of {number(spoken[1])}."
        )
    if automatic_key:
        lines += _why_this_key(circuit)
    if not chosen.heads:
        lines.append(f"No head carries anything positive from position {circuit.key}.")
    elif chosen.share_positive is None:
        lines.append(
            "The positive share is refused: what arrives from other positions is less than a "
            "tenth of the target."
        )
    lines += _refused_causal_shares(circuit)
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
    if circuit.dictionaries == NONE:
        lines.append(
            "No dictionaries were read, so no features and no concepts are shown: saekit train "
            "makes them."
        )
    if circuit.patterns is None:
        lines.append("Attention maps are stored for prompts of up to 64 tokens only.")
    return lines


def _quoted(token: str) -> str:
    return "'" + token.replace("\n", "\\n") + "'"


def _why_this_key(circuit: Circuit) -> list[str]:
    """How the automatic key was chosen, and what the next candidate is."""
    rows = [row for row in circuit.arrivals if row.position > 0]
    ranked = sorted(zip(rows, circuit.tokens, strict=False), key=lambda pair: -pair[0].net)
    own = next((row for row, _ in ranked if row.position == circuit.key), None)
    others = [(row, token) for row, token in ranked if row.position != circuit.key]
    if own is None or not others:
        return []
    following, token = others[0]
    return [
        f"Position {own.position} is the key because most arrives from it (net {number(own.net)}); "
        f"next is {following.position} {_quoted(token)} ({number(following.net)})."
    ]


def _refused_causal_shares(circuit: Circuit) -> list[str]:
    """Why a causal share is missing: the drop it would be a share of, beside the set's own."""
    key, lines = circuit.key, []
    everything = ("all edges into the query", circuit.all_edges_drop)
    of_key = (f"all heads' edges from position {key}", circuit.key_edges_drop)
    chosen, shown = circuit.set, circuit.shown
    named = [
        ("set", chosen, [(chosen.share_causal, everything), (chosen.share_causal_of_key, of_key)])
    ]
    if set(shown.heads) != set(chosen.heads):  # only this share of them is written anywhere
        named.append(("heads shown", shown, [(shown.share_causal, everything)]))
    for name, heads, shares in named:
        for share, (what, drop) in shares:
            if heads.heads and share is None:
                lines.append(
                    f"The {name} {'has' if name == 'set' else 'have'} no causal share of {what}: "
                    f"the target falls by {number(heads.joint_drop)} without the {name} and by "
                    f"{number(drop)} without {what}."
                )
    return lines
