"""Nodes and links in the JSON form of attribution graphs that circuit-tracer and Neuronpedia read.

The form numbers features by pairing layer and index, counts positions from 0 with BOS, and asks for
an `influence` in [0, 1] by which pages hide nodes.  Numbers of nodes that are no features are
negative.  Importing this module costs no torch.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from saekit.routes.circuit import rounded

KEPT = 0.95  # of the absolute contributions; what is below becomes one node "other"

NodeKey = tuple[str, int, int]  # layer as written, number, tensor index


def paired(layer: int, feature: int) -> int:
    """One number for (layer, feature): Cantor's pairing, which the form asks for."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


@dataclass
class Graph:
    """Nodes by place, and links, whose weights are summed."""

    nodes: dict[NodeKey, dict[str, Any]] = field(default_factory=dict)
    links: dict[tuple[NodeKey, NodeKey], float] = field(default_factory=lambda: defaultdict(float))

    def node(
        self, layer: str | int, number: int, at: int, kind: str, label: str, **more: Any
    ) -> NodeKey:
        """The node at a place, made on first use; returns its key."""
        key = (str(layer), number, at)
        real = kind == "cross layer transcoder" and number >= 0
        self.nodes.setdefault(
            key,
            {
                "node_id": f"{layer}_{number}_{at}",
                "feature": paired(int(layer), number) if real else number,
                "layer": str(layer),
                "ctx_idx": at,
                "feature_type": kind,
                "token_prob": 0.0,
                "is_target_logit": False,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{layer}_{number}-{at}",
                "clerp": label,
                "influence": None,
                "activation": None,
                **more,
            },
        )
        return key

    def link(self, source: NodeKey, target: NodeKey, weight: float) -> None:
        """Add `weight` to a link."""
        if weight:
            self.links[source, target] += weight

    def drop_unused(self) -> None:
        """Sums of nothing are left out; tokens stay, so that the prompt can be read."""
        used = {node for link in self.links for node in link}
        self.nodes = {key: node for key, node in self.nodes.items() if key[0] == "E" or key in used}

    def add_influence(self, top: NodeKey) -> None:
        """Where a node stands among all by absolute contribution to `top`, cumulated: pages hide
        nodes above a threshold."""
        heads = {source for source, target in self.links if target == top}
        size: dict[NodeKey, float] = defaultdict(float)
        for (source, target), weight in self.links.items():
            if target == top or target in heads:
                size[source] += abs(weight)
        whole, reached = sum(size.values()) or 1.0, 0.0
        for node in sorted(size, key=lambda node: -size[node]):
            reached += size[node]
            self.nodes[node]["influence"] = rounded(min(reached / whole, 1.0))
        for node in self.nodes.values():
            if node["influence"] is None:
                node["influence"] = 0.0 if node["feature_type"] == "logit" else 1.0
        self.nodes[top]["influence"] = 0.0

    def documents(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(nodes, links) as they are written."""
        links = [
            {
                "source": self.nodes[source]["node_id"],
                "target": self.nodes[target]["node_id"],
                "weight": weight,
            }
            for (source, target), weight in self.links.items()
        ]
        return list(self.nodes.values()), links


def kept_part(sizes: Sequence[float], share: float = KEPT) -> list[int]:
    """The fewest places whose absolute values reach `share` of all, largest first."""
    order = sorted(range(len(sizes)), key=lambda i: -abs(sizes[i]))
    needed, reached = share * sum(map(abs, sizes)), 0.0
    chosen = []
    for place in order:
        if reached >= needed or sizes[place] == 0:
            break
        chosen.append(place)
        reached += abs(sizes[place])
    return chosen
