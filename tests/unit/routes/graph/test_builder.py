"""The attribution graph: what pages require is there, and weights into nodes add up.

Mutations tried by hand, each of which fails here: the BOS edges left out; constants of the own
token's part counted twice; weak features dropped instead of summed; the split of one edge linked to
another head; the logit's clerp without its probability.
"""

from collections import defaultdict

import pytest
import torch

from saekit.errors import InputError
from saekit.routes.graph.builder import MOST_FEATURES, attribution_graph
from saekit.routes.graph.form import kept_part, paired
from saekit.routes.trace import trace
from saekit.sae.storage.dictionary_set import DictionarySet

PROMPT = 'The opposite of "large" is "'
METADATA = {"slug", "scan", "prompt_tokens", "prompt"}  # what Neuronpedia's schema requires
NODE = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
Q_PARAMS = {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}


def checked(graph: dict) -> dict:
    """What every page needs; returns the sum of weights into every node."""
    assert set(graph["metadata"]) >= METADATA
    assert set(graph["qParams"]) >= Q_PARAMS
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)
    layers = [int(n["layer"]) for n in graph["nodes"] if n["layer"] != "E"]
    for node in graph["nodes"]:
        assert set(node) >= NODE
        assert isinstance(node["feature"], int)
        assert 0 <= node["ctx_idx"] < len(graph["metadata"]["prompt_tokens"])
        assert 0 <= node["influence"] <= 1
        if node["feature_type"] == "logit":
            assert int(node["layer"]) == max(layers)
            assert 0 < float(node["clerp"].split("(p=")[1].split(")")[0]) <= 1
            assert node["is_target_logit"]
    places = [(n["layer"], n["feature"], n["ctx_idx"]) for n in graph["nodes"]]
    assert len(set(places)) == len(places), "pages take such nodes for one"
    # pages leave out what has one layer and number at more than two thirds of the positions
    left_alone = ("cross layer transcoder", "mlp reconstruction error", "other error")
    kinds = [n for n in graph["nodes"] if n["feature_type"] not in left_alone]
    sums = [(n["layer"], n["feature"]) for n in kinds]
    assert len(set(sums)) == len(sums)
    tokens = [n["ctx_idx"] for n in graph["nodes"] if n["feature_type"] == "embedding"]
    assert sorted(tokens) == list(range(len(graph["metadata"]["prompt_tokens"])))
    into: dict[str, float] = defaultdict(float)
    for link in graph["links"]:
        assert link["source"] in ids and link["target"] in ids
        assert link["source"] != link["target"]
        into[link["target"]] += link["weight"]
    assert set(graph["qParams"]["pinnedIds"]) <= set(ids)
    assert graph["qParams"]["clickedId"] in ids
    assert sum(n["feature_type"] == "logit" for n in graph["nodes"]) == 1
    return into


@pytest.mark.parametrize("target", [None, "hot", "3/{}"])
def test_weights_into_every_node_add_up(tiny_model, random_dictionaries, target):
    if target == "3/{}":
        x = trace(tiny_model, random_dictionaries, PROMPT, random_sets=0).target.feature
        target = x
    circuit = trace(
        tiny_model, random_dictionaries, PROMPT, target=target, random_sets=0, dtype=torch.float64
    )
    graph = attribution_graph(
        tiny_model, random_dictionaries, PROMPT, target=target, dtype=torch.float64
    )
    into, top = checked(graph), graph["qParams"]["clickedId"]
    value = sum(row.value for row in circuit.components)  # the completeness table
    assert into[top] == pytest.approx(value, rel=1e-4, abs=1e-5)
    out = {link["source"]: link["weight"] for link in graph["links"] if link["target"] == top}
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    heads = [i for i, node in nodes.items() if node["clerp"].startswith("L") and i in out]
    assert heads
    for head in heads:
        assert into[head] == pytest.approx(out[head], rel=1e-6, abs=1e-8)
    features = [i for i, node in nodes.items() if node["activation"] and i != top]
    assert features
    for name in features:  # active: the value explained is the activation
        assert into[name] == pytest.approx(nodes[name]["activation"], rel=1e-4, abs=1e-4)
    if circuit.target.kind != "token":
        logit = next(i for i, node in nodes.items() if node["feature_type"] == "logit")
        token = trace(
            tiny_model, random_dictionaries, PROMPT, circuit.prediction[0].token, random_sets=0
        )
        assert into[logit] == pytest.approx(token.target.preactivation, rel=1e-4)


def test_a_planted_head_is_the_graph(planted, known_features):
    model = planted({(1, 2): 8.0})
    graph = attribution_graph(model, known_features(model), PROMPT, "3/1", dtype=torch.float64)
    into = checked(graph)
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    top = graph["qParams"]["clickedId"]
    sizes = {
        link["source"]: abs(link["weight"]) for link in graph["links"] if link["target"] == top
    }
    head = max(sizes, key=sizes.__getitem__)
    assert nodes[head]["clerp"] == "L1-H2"
    assert nodes[head]["feature_type"] == "attention head"
    sources = {link["source"]: link["weight"] for link in graph["links"] if link["target"] == head}
    best = max(sources, key=sources.__getitem__)
    assert (nodes[best]["clerp"], nodes[best]["ctx_idx"]) == ("1/0", 5)
    assert sources[best] == pytest.approx(into[top], rel=1e-4)
    assert nodes[best]["feature"] == paired(1, 0)
    (token,) = [link["source"] for link in graph["links"]
                if link["target"] == best and abs(link["weight"]) > 1e-3]  # fmt: skip
    assert (nodes[token]["feature_type"], nodes[token]["ctx_idx"]) == ("embedding", 5)
    assert nodes[token]["clerp"] == 'Emb: "large"'


def test_concepts_are_supernodes(planted, known_features, named):
    model = planted({(1, 2): 8.0, (2, 1): 8.0})
    graph = attribution_graph(
        model, known_features(model), PROMPT, "3/1", catalogue=named(model), spans=[]
    )
    groups = {name: ids for name, *ids in graph["qParams"]["supernodes"]}
    assert {"1_0_5", "2_0_5"} <= set(groups["large"])


def test_few_feature_nodes_are_kept(tiny_model, random_dictionaries, monkeypatch):
    """What is not kept is summed: weights into every head stay the same."""
    whole = checked(attribution_graph(tiny_model, random_dictionaries, PROMPT))
    monkeypatch.setattr("saekit.routes.graph.builder.MOST_FEATURES", 3)
    graph = attribution_graph(tiny_model, random_dictionaries, PROMPT)
    into = checked(graph)
    top = graph["qParams"]["clickedId"]
    kept = [n for n in graph["nodes"] if n["feature_type"] == "cross layer transcoder"]
    assert len([n for n in kept if n["node_id"] != top]) == 3 < MOST_FEATURES
    for node in graph["nodes"]:
        if node["feature_type"] == "attention head":
            name = node["node_id"]
            assert into[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6)


def test_a_head_without_a_dictionary_reads_the_stream_not_the_token(planted, known_features):
    """What L1-H2 reads is more than an embedding.  Mutation tried: linked to the token."""
    model = planted({(1, 2): 8.0})
    whole = known_features(model)
    top = DictionarySet({3: whole[3]}, whole.manifest, whole.path)
    graph = attribution_graph(model, top, PROMPT, "3/1", dtype=torch.float64)
    into = checked(graph)
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    head = next(i for i, node in nodes.items() if node["clerp"] == "L1-H2")
    sources = {link["source"]: link["weight"] for link in graph["links"] if link["target"] == head}
    best = max(sources, key=sources.__getitem__)
    assert (nodes[best]["clerp"], nodes[best]["ctx_idx"]) == ("stream of layer 1", 5)
    assert sources[best] == pytest.approx(into[head], rel=1e-6)
    assert not any(nodes[name]["feature_type"] == "embedding" for name in sources)


def test_parts_of_the_form():
    assert [paired(0, 0), paired(1, 0), paired(0, 1), paired(2, 3)] == [0, 1, 2, 18]
    assert kept_part([1.0, -8.0, 0.0, 3.0], 0.9) == [1, 3]
    assert kept_part([0.0, 0.0]) == []


def test_bad_input(planted, known_features):
    model = planted({})
    for options, sentence in (
        ({"query": 1}, "Nothing can arrive at position 1"),
        ({"query": 9}, "Query position 9 does not exist"),
    ):
        with pytest.raises(InputError, match=sentence):
            attribution_graph(model, known_features(model), PROMPT, **options)
