"""What the figure says in words, decided from the circuit's numbers.

A head *maps* the key to the query when the key gets the largest attention weight of the query's row
among the prompt's tokens (BOS, position 0, is not counted).  Without stored maps (prompts of more
than 64 tokens) the head must give the key more than half of its attention, which implies the same.
"""

from saekit.report.formatting import plain
from saekit.routes.circuit import Circuit
from saekit.routes.circuit_parts import CircuitConcept, CircuitHead
from saekit.wording import number, percent

MAPS = (
    "A head maps key to query when the key has the largest attention weight of the query's row "
    "among the prompt's tokens, the beginning-of-sequence token not counted."
)
SHARE_POSITIVE = (
    "Attribution share: of the positive contributions to the target that reach the query position "
    "from the prompt's other tokens, the part that comes over these heads' edges from the key "
    "(last-arrival attribution; attention, LayerNorm scales and MLP gates frozen). It is not a "
    "causal effect."
)
SHARE_CAUSAL = (
    "Causal share: how far the target falls when these edges are removed together, everything else "
    "live, divided by how far it falls when all edges into the query from the prompt's other "
    "tokens are removed."
)
RANDOM_SETS = (
    "Baseline: the same joint removal for random sets of as many heads in the same layers. A set "
    "that matters lowers the target more than nearly all of them."
)
COMPLETENESS = (
    "Completeness error: relative difference between the target's pre-activation and the sum of "
    "everything written to its position (embedding, heads, MLPs, biases)."
)
ERROR_NODE = (
    "Error-node share: the part of what the set's heads read at the key that the dictionaries do "
    "not reconstruct."
)


def head_pattern(circuit: Circuit, layer: int, index: int) -> list[list[float]] | None:
    """Attention [q, k] of a head over positions 1..n, or None when it is not stored."""
    patterns = circuit.patterns or []
    if layer < len(patterns) and index < len(patterns[layer]):
        return patterns[layer][index]
    return None


def maps_key(circuit: Circuit, head: CircuitHead) -> bool:
    """Whether a head maps the circuit's key to its query."""
    pattern = head_pattern(circuit, head.layer, head.index)
    if pattern is None:
        return head.attention > 0.5
    row = pattern[circuit.query - 1][: circuit.query]
    return row[circuit.key - 1] > 0 and row[circuit.key - 1] == max(row)


def header(circuit: Circuit) -> str:
    """The line over the isolated heads: "All 5 heads map ..." only when it is true."""
    heads = circuit.heads
    if not heads:
        return "No head carries the target"
    edge = f"key pos {circuit.key} to query pos {circuit.query}"
    yes = sum(maps_key(circuit, head) for head in heads)
    if len(heads) == 1:
        return f"The head maps {edge}" if yes else f"One head, edge {edge}"
    if yes == len(heads):
        return f"All heads map {edge}"
    if yes == 0:
        return f"None of {len(heads)} heads maps {edge}"
    return f"{yes} of {len(heads)} heads map{'s' if yes == 1 else ''} {edge}"


def target_name(circuit: Circuit) -> str:
    """The target as shown: its concept, else its feature (`12/345`) or token."""
    return plain(circuit.target.concept or circuit.target.feature or "target")


def is_target(circuit: Circuit, concept: CircuitConcept) -> bool:
    """Whether a concept is the circuit's target (drawn at the right, not over its token)."""
    target = circuit.target
    return concept.name == target.concept and concept.position == target.position


def n_heads(count: int) -> str:
    """`n_heads(1) == "1 head"`."""
    return "1 head" if count == 1 else f"{count} heads"


def by_whom(circuit: Circuit) -> str:
    """ "this head", "these 5 heads", or the names where they are not all drawn."""
    chosen = circuit.shown.heads
    if set(chosen) == {head.head for head in circuit.heads}:
        return "this head" if len(chosen) == 1 else f"these {n_heads(len(chosen))}"
    more = f" and {len(chosen) - 6} more" if len(chosen) > 6 else ""
    return ", ".join(chosen[:6]) + more


def share_sentence(circuit: Circuit) -> str:
    """What the share in the bubble is a share of."""
    if circuit.shown.share_positive is None:
        return "No share is given: too little arrives at the query to divide by."
    query = circuit.target.position
    return f"share of the positive attribution into position {query} through {by_whom(circuit)}"


def causal_sentences(circuit: Circuit) -> list[str]:
    """Causal share and drop of the drawn heads, of the N80 set, and of random sets."""
    drawn, chosen = circuit.shown, circuit.set
    sentences = []
    if drawn.heads:
        edges = "this edge" if len(drawn.heads) == 1 else "these edges together"
        sentences.append(
            f"Causal share {percent(drawn.share_causal)}: removing {edges} lowers "
            f"{target_name(circuit)} by {number(drawn.joint_drop)}."
        )
    same = set(drawn.heads) == set(chosen.heads)
    if chosen.heads and not same:
        sentences.append(
            f"The {n_heads(len(chosen.heads))} that carry 80% of this key's part: causal share "
            f"{percent(chosen.share_causal)}, drop {number(chosen.joint_drop)}."
        )
    random = circuit.random_sets
    if random.n:
        sentences.append(
            f"{random.n} random sets of {n_heads(random.size)}: median drop "
            f"{number(random.median_drop)}, 95% below {number(random.p95_drop)}."
        )
    return sentences
