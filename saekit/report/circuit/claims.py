"""What the figure says in words, decided from the circuit's numbers.

A head *maps* the key to the query when the key gets the largest attention weight of the query's row
among the prompt's tokens (BOS, position 0, is not counted).  Without stored maps (prompts of more
than 64 tokens) the head must give the key more than half of its attention, which implies the same.
"""

from typing import Any

from saekit.coordinates import head_name
from saekit.report.formatting import plain
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


def as_document(circuit: Any) -> dict[str, Any]:
    """The JSON document of a `Circuit` or of a dict that already is one."""
    return circuit if isinstance(circuit, dict) else circuit.to_dict()


def name_of_head(head: dict[str, Any]) -> str:
    """`L9-H7`."""
    return head_name(head["layer"], head["index"])


def head_pattern(document: dict[str, Any], head: dict[str, Any]) -> list[list[float]] | None:
    """Attention [q, k] of a head over positions 1..n, or None when it is not stored."""
    patterns = document.get("patterns")
    if not patterns or not document["tokens"]:
        return None
    try:
        return patterns[head["layer"]][head["index"]]
    except IndexError:
        return None


def maps_key(document: dict[str, Any], head: dict[str, Any]) -> bool | None:
    """Whether a head maps the circuit's key to its query; None without an edge or a weight."""
    query, key = document.get("query"), document.get("key")
    if query is None or key is None:
        return None
    pattern = head_pattern(document, head)
    if pattern is not None:
        row = pattern[query - 1][:query]
        return row[key - 1] > 0 and row[key - 1] == max(row)
    attention = head.get("attention")
    return None if attention is None else attention > 0.5


def header(document: dict[str, Any]) -> str:
    """The line over the isolated heads: "All 5 heads map ..." only when it is true."""
    heads = document.get("heads") or []
    if not heads:
        return "No head carries the target"
    query, key = document.get("query"), document.get("key")
    if query is None or key is None:
        return f"{len(heads)} heads"
    edge = f"key pos {key} to query pos {query}"
    verdicts = [maps_key(document, head) for head in heads]
    yes = sum(verdict is True for verdict in verdicts)
    if len(heads) == 1:
        return f"The head maps {edge}" if yes else f"One head, edge {edge}"
    if yes == len(heads):
        return f"All heads map {edge}"
    if yes == 0:
        return f"None of {len(heads)} heads maps {edge}"
    return f"{yes} of {len(heads)} heads map{'s' if yes == 1 else ''} {edge}"


def target_name(document: dict[str, Any]) -> str:
    """The target as shown: its concept, else its feature (`12/345`) or token."""
    target = document["target"]
    name = target.get("concept") or target.get("feature")
    return plain(name) if name not in (None, "") else "target"


def is_target(document: dict[str, Any], concept: dict[str, Any]) -> bool:
    """Whether a concept is the circuit's target (drawn at the right, not over its token)."""
    target = document["target"]
    return concept["name"] == target.get("concept") and concept["position"] == target["position"]


def shown_set(document: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the heads that are drawn; the figure's share is about exactly these."""
    return document.get("shown") or document.get("set") or {}


def n_heads(count: int) -> str:
    """`n_heads(1) == "1 head"`."""
    return "1 head" if count == 1 else f"{count} heads"


def by_whom(document: dict[str, Any]) -> str:
    """ "this head", "these 5 heads", or the names where they are not all drawn."""
    chosen = list(shown_set(document).get("heads") or [])
    drawn = [name_of_head(head) for head in document.get("heads") or []]
    if set(chosen) == set(drawn):
        return "this head" if len(chosen) == 1 else f"these {n_heads(len(chosen))}"
    more = f" and {len(chosen) - 6} more" if len(chosen) > 6 else ""
    return ", ".join(chosen[:6]) + more


def share_sentence(document: dict[str, Any]) -> str:
    """What the share in the bubble is a share of."""
    if shown_set(document).get("share_positive") is None:
        return "No share is given: too little arrives at the query to divide by."
    query = document["target"]["position"]
    return f"share of the positive attribution into position {query} through {by_whom(document)}"


def causal_sentences(document: dict[str, Any]) -> list[str]:
    """Causal share and drop of the drawn heads, of the N80 set, and of random sets."""
    drawn, chosen = shown_set(document), document.get("set") or {}
    sentences = []
    if drawn.get("heads"):
        edges = "this edge" if len(drawn["heads"]) == 1 else "these edges together"
        sentences.append(
            f"Causal share {percent(drawn.get('share_causal'))}: removing {edges} lowers "
            f"{target_name(document)} by {number(drawn.get('joint_drop'))}."
        )
    same = set(drawn.get("heads") or []) == set(chosen.get("heads") or [])
    if chosen.get("heads") and not same:
        sentences.append(
            f"The {n_heads(len(chosen['heads']))} that carry 80% of this key's part: causal share "
            f"{percent(chosen.get('share_causal'))}, drop {number(chosen.get('joint_drop'))}."
        )
    random = document.get("random_sets") or {}
    if random.get("n"):
        sentences.append(
            f"{random['n']} random sets of {n_heads(random['size'])}: median drop "
            f"{number(random.get('median_drop'))}, 95% below {number(random.get('p95_drop'))}."
        )
    return sentences
