"""A circuit as an attribution graph in the JSON that circuit-tracer's and Neuronpedia's pages open.

Heads carry what the last-arrival decomposition says (arrivals.py), so that the weights into
every explained node add up to its value:

    heads, own token, constants -> target     H(m, h, .) summed over keys; p is their sum
    features, errors, constants -> head       the parts of the head's edges, key by key; weak edges
                                              and layers without a dictionary: the whole stream
    tokens, constants           -> feature    all paths from the embeddings, frozen (paths.py)
    target feature, the rest    -> logit      the feature's direct effect on the centred logit

Weights are in units of the node they enter.  The form has no nodes for heads: they are written as
nodes of type "attention head", which pages draw as a plain node.  Feature numbers of nodes that are
no features are negative: -1 the error of a dictionary, -2 - h head h, below -1000 sums of the rest;
those of tokens are their position.
Positions are tensor indices, with BOS as position 0 where the model is read with it.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from saekit.concepts.catalogue import Catalogue
from saekit.coordinates import feature_name, head_name
from saekit.model.loading import LanguageModel
from saekit.routes.attribution.arrivals import Arrivals, arrivals, split_edge
from saekit.routes.attribution.paths import frozen_maps
from saekit.routes.circuit import rounded
from saekit.routes.graph.form import KEPT, Graph, NodeKey, kept_part
from saekit.routes.prompt_run import PromptRun
from saekit.routes.target import (
    Target,
    TargetChooser,
    activations,
    feature_target,
    token_direction,
    token_target,
)
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.version import __version__

SCHEMA_VERSION = 1  # of the form: features are numbered by pairing layer and index
MOST_FEATURES = 80  # feature nodes, the strongest ones: each needs a decomposition of its own
ERROR, OTHER_HEADS, CONSTANTS, REST = -1, -1001, -1002, -1004
# Less the position: pages take nodes of one layer and number for one feature, and leave out what
# stands at more than two thirds of the positions.
OTHER_FEATURES, STREAM = -10_000, -1_000_000
TARGETS_AT_ONCE = 8  # of the frozen maps: 80 at GPT-2 small's size and 1,000 tokens would need 6 GB


class GraphBuilder:
    """The graph of one target on one prompt."""

    def __init__(self, run: PromptRun, target: Target) -> None:
        self.run, self.model, self.exact, self.clean = run, run.model, run.exact, run.clean
        self.dictionaries, self.target = run.dictionaries, target
        self.graph = Graph()
        self.features: dict[NodeKey, Target] = {}

    def build(self) -> Graph:
        """All nodes and links, from the target down."""
        found = arrivals(self.exact, self.clean, self.target)
        top = self._target_node()
        for at in range(self.target.query + 1):
            self._token(at)
        self._stayed(found, top)
        by_head = found.edges.sum(-1)
        flat = by_head.flatten().tolist()
        kept = kept_part(flat)
        for place in tqdm(kept, desc="graph", unit="head", leave=False):
            m, h = divmod(place, self.exact.n_heads)
            node = self.graph.node(m, -2 - h, self.target.query, "attention head", head_name(m, h))
            self.graph.link(node, top, flat[place])
            self._head(found, (m, h), node)
        others = sum(value for place, value in enumerate(flat) if place not in set(kept))
        label = f"{len(flat) - len(kept)} other heads"
        self.graph.link(self._sum(OTHER_HEADS, "attention head", label), top, others)
        self._keep_strongest_features()
        self._tokens_of_features()
        if self.target.feature is not None:
            self._logit(top)
        return self.graph

    def _sum(self, number: int, kind: str, label: str) -> NodeKey:
        return self.graph.node(0, number, self.target.query, kind, label)

    def _activations(self, layer: int, at: int) -> torch.Tensor:
        return activations(self.dictionaries[layer], self.clean.resid[layer, at])

    def _token(self, at: int) -> NodeKey:
        token = int(self.clean.ids[at])
        text = self.model.vocabulary[token]
        return self.graph.node("E", token, at, "embedding", f'Emb: "{text}"', feature=at)

    def _feature_node(self, layer: int, feature: int, at: int, activation: float) -> NodeKey:
        own, name = self.run.called(layer, feature), feature_name(layer, feature)
        label = f"{own} ({name})" if own else name
        return self.graph.node(
            layer, feature, at, "cross layer transcoder", label, activation=rounded(activation)
        )

    def _target_node(self) -> NodeKey:
        t = self.target
        if t.feature is None:
            assert t.token is not None
            return self._logit_node(t.token)
        acts = self._activations(t.layer, t.query)
        return self._feature_node(t.layer, t.feature, t.query, float(acts[t.feature]))

    def _logit_node(self, token: int) -> NodeKey:
        q, layer = self.target.query, self.exact.n_layers + 1
        chance = float(self.clean.logits[q].softmax(-1)[token])
        label = f'Output "{self.model.vocabulary[token]}" (p={chance:.3f})'
        return self.graph.node(
            layer, token, q, "logit", label, token_prob=chance, is_target_logit=True,
            jsNodeId=f"L_{token}-{q}",
        )  # fmt: skip

    def _stayed(self, found: Arrivals, node: NodeKey) -> None:
        """What stayed at the position: its own token, and constants."""
        q = found.target.query
        resid = self.clean.resid.clone()
        resid[0, q] = 0
        constants = arrivals(self.exact, replace(self.clean, resid=resid), found.target).rest
        self.graph.link(self._token(q), node, found.rest - constants)
        self.graph.link(self._sum(CONSTANTS, "bias", "constants"), node, constants)

    def _head(self, found: Arrivals, head: tuple[int, int], node: NodeKey) -> None:
        """The parts of a head's edges.  Weak ones and those of layers without a dictionary stay
        whole: they come from the stream at the key, which is more than the key's token."""
        m, _ = head
        edges = found.edges[head[0], head[1], : self.target.query].tolist()
        split = kept_part(edges) if m in self.dictionaries.layers else []
        for key, value in enumerate(edges):
            if key not in split:
                label = f"stream of layer {m}"
                stream = self.graph.node(m, STREAM - key, key, "whole stream", label)
                self.graph.link(stream, node, value)
                continue
            dictionary = self.dictionaries[m]
            parts = split_edge(self.exact, self.clean, found, dictionary, head, key)
            acts = self._activations(m, key)
            names = list(parts.features)
            strong = {names[i] for i in kept_part(list(parts.features.values()))}
            for feature, weight in parts.features.items():
                if feature in strong:
                    source = self._feature_node(m, feature, key, float(acts[feature]))
                    if source not in self.features:
                        self.features[source] = feature_target(self.exact, dictionary, feature, key)
                else:
                    source = self._other_features(m, key)
                self.graph.link(source, node, weight)
            error = self.graph.node(
                m, ERROR, key, "mlp reconstruction error", f"missed by the dictionary of layer {m}"
            )
            self.graph.link(error, node, parts.error)
            constants = self._sum(CONSTANTS, "bias", "constants")
            self.graph.link(constants, node, parts.decoder_bias + parts.constant)

    def _other_features(self, layer: int, at: int) -> NodeKey:
        return self.graph.node(
            layer, OTHER_FEATURES - at, at, "other features", f"other features of layer {layer}"
        )

    def _keep_strongest_features(self) -> None:
        """Weaker feature nodes are put into the node of other features at their place."""
        totals: dict[NodeKey, float] = defaultdict(float)
        for (source, _), weight in self.graph.links.items():
            totals[source] += abs(weight)
        ranked = sorted(self.features, key=lambda node: -totals[node])
        weak = set(ranked[MOST_FEATURES:])
        for source, target in list(self.graph.links):
            if source in weak:
                other = self._other_features(int(source[0]), source[2])
                self.graph.link(other, target, self.graph.links.pop((source, target)))
        for node in weak:
            del self.features[node], self.graph.nodes[node]

    def _tokens_of_features(self) -> None:
        """What every token's embedding brings to every feature node at a key."""
        nodes, targets = list(self.features), list(self.features.values())
        parts = [targets[at : at + TARGETS_AT_ONCE] for at in range(0, len(nodes), TARGETS_AT_ONCE)]
        maps = (
            found
            for part in tqdm(parts, desc="features", unit="part", leave=False)
            for found in frozen_maps(self.exact, self.clean, part, 0)
        )
        for node, found in zip(nodes, maps, strict=True):
            by_token = (self.clean.resid[0] * found.J).sum(-1)
            for at, value in enumerate(by_token[: node[2] + 1].tolist()):
                self.graph.link(self._token(at), node, value)
            constants = self._sum(CONSTANTS, "bias", "constants")
            self.graph.link(constants, node, found.constant + float(found.nodes.sum()))

    def _logit(self, top: NodeKey) -> None:
        """The most probable token, with what the target feature writes on it directly."""
        t = self.target
        assert t.feature is not None
        token = self.run.top_token(t.query)
        direction, _ = token_direction(self.exact, self.clean, token, t.query)
        dictionary = self.dictionaries[t.layer]
        act = float(self._activations(t.layer, t.query)[t.feature])
        direct = act * float(dictionary.W_dec[t.feature].to(direction) @ direction)
        value = token_target(self.exact, self.clean, token, t.query, "").value(self.clean)
        logit = self._logit_node(token)
        self.graph.link(top, logit, direct)
        rest = self._sum(REST, "other error", "everything else at this position")
        self.graph.link(rest, logit, value - direct)

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        graph, q, top_key = self.build(), self.target.query, self._target_node()
        graph.drop_unused()
        graph.add_influence(top_key)
        top = graph.nodes[top_key]["node_id"]
        groups: dict[str, list[str]] = defaultdict(list)
        for node in [top_key, *self.features]:
            name = graph.nodes[node]["clerp"].rpartition(" (")[0]
            if name and node in graph.nodes:
                groups[name].append(graph.nodes[node]["node_id"])
        heads = [
            n["node_id"] for n in graph.nodes.values()
            if n["feature_type"] == "attention head" and n["feature"] > OTHER_HEADS
        ]  # fmt: skip
        nodes, links = graph.documents()
        prompt = self.run.prompt
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt"
        return {
            "metadata": {
                "slug": slug,
                "scan": self.model.id,
                "transcoder_list": [],
                "prompt_tokens": self.model.token_strings(self.clean.ids[: q + 1].tolist()),
                "prompt": prompt,
                "node_threshold": KEPT,
                "schema_version": SCHEMA_VERSION,
                "info": {
                    "description": "Last-arrival decomposition through attention heads; weights "
                    "are attributions of one forward pass, not causal effects.",
                    "generator": {"name": "saekit", "version": __version__},
                },
                "generation_settings": {
                    "dictionaries": self.dictionaries.name,
                    "target": self.target.label,
                    "target_value": rounded(self.target.value(self.clean)),
                },
            },
            "qParams": {
                "pinnedIds": [top, *heads, *dict.fromkeys(sum(groups.values(), []))],
                "supernodes": [[name, *ids] for name, ids in groups.items() if len(ids) > 1],
                "linkType": "both",
                "clickedId": top,
                "sg_pos": "",
            },
            "nodes": nodes,
            "links": links,
        }


def attribution_graph(
    model: str | LanguageModel,
    dictionaries: str | DictionarySet,
    prompt: str,
    target: str | None = None,
    query: int | None = None,
    catalogue: Catalogue | None = None,
    spans: Sequence[Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """The attribution graph of one target on one prompt (module docstring); arguments as in
    `saekit.trace`.

    Raises:
        InputError: as `saekit.trace`.
        MismatchError: dictionaries or catalogue of another model.
    """
    run = PromptRun.of(model, dictionaries, prompt, catalogue, spans, dtype)
    query = run.arriving(query)
    return GraphBuilder(run, TargetChooser(run, query).choose(target)).document()
