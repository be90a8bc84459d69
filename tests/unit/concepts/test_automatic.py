import numpy as np
import pytest

from saekit.concepts.automatic import automatic_concepts
from saekit.concepts.catalogue import Catalogue
from saekit.features.names.name_file import NAMES, FeatureNames, LayerNames, write_names
from saekit.report.terminal.concept_tables import automatic_sentence, automatic_table


class Index:
    """What a file of names must know of its index."""

    model, fingerprint, dictionaries = "m", "f", ["a", "b", "c"]
    layers, sizes, d_sae = [0, 2, 3], [4, 4, 4], 4


@pytest.fixture
def names(tmp_path):
    layers = [LayerNames.empty(4) for _ in range(3)]

    def give(slot, feature, text, chosen, reported, null=0.5):
        layers[slot].set(feature, text, "input", "current word", 1.0, 20.0)
        for name, value in (
            ("chosen_detection", chosen), ("detection", reported), ("null_detection", null),
            ("f1", 0.9), ("auroc", 1.0), ("fuzzing", 0.9),
        ):  # fmt: skip
            layers[slot].scores[name][feature] = value

    give(0, 0, "large", 0.95, 0.85)
    give(1, 1, "large", 0.99, 0.98)
    give(2, 2, "large", 0.80, 1.00)  # good on the other part only: not chosen
    give(1, 3, "and", 0.92, 0.91, null=0.4)
    give(0, 3, "or", 0.95, np.nan)  # too rare there
    write_names(tmp_path / NAMES, Index, layers, labeller="rules", text="", n_tokens=1, summary={})
    return FeatureNames.read(tmp_path / NAMES)


CHAINS = [[(0, 0), (2, 1), (3, 0)], [(0, 1), (2, 0)]]


def test_chains_and_single_features_with_a_reliable_name(names):
    # mutation tried: choosing by the reported score makes 3/2 a concept and drops 0/0
    large, and_ = automatic_concepts(names, CHAINS)
    assert (large.name, large.kind, large.span) == ("large", "input", (0, 3))
    assert (large.features, large.best) == (["0/0", "2/1", "3/0"], "2/1")
    assert (large.detection, large.null_detection) == (0.98, 0.5)
    assert (and_.name, and_.features, and_.span) == ("and", ["2/3"], (2, 2))
    assert [c.features for c in automatic_concepts(names)] == [["2/1"], ["0/0"], ["2/3"]]


def test_a_chain_is_called_by_the_vote_of_its_members(names):
    mixed = automatic_concepts(names, [[(0, 0), (2, 1)], [(2, 3), (3, 2)]])
    assert [c.name for c in mixed] == ["large", "and"]  # 3/2 is not reliable and does not vote
    one = automatic_concepts(names, [[(0, 0), (2, 1), (2, 3)]])[0]
    assert one.name == "large"


def test_the_table_and_its_sentence(names):
    found = automatic_concepts(names)
    shown = automatic_table(found, 1)
    assert "large (input)" in shown and "and 1 more" in shown and "2/1" in shown
    assert "1 more names" in shown
    sentence = automatic_sentence(found)
    assert "3 automatic concepts" in sentence and "of 2 names" in sentence
    assert "2 of the 3 do" in sentence and "the mean is 0.467" in sentence  # of the nulls
    assert "No feature" in automatic_table([])


def test_the_catalogue_keeps_them(names, tmp_path):
    found = automatic_concepts(names, CHAINS)
    catalogue = Catalogue("m", "f", "set", "text", 10, [], {}, found)
    catalogue.save(tmp_path / "concepts.json")
    assert Catalogue.load(tmp_path / "concepts.json") == catalogue
    older = {k: v for k, v in catalogue.to_dict().items() if k != "automatic"}
    assert Catalogue.from_dict(older).automatic == []
