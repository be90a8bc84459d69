from saekit.report.circuit import claims
from tests.unit.report.samples import CHOSEN, circuit


def test_all_heads_only_when_it_is_true():
    """Mutation tried: with "attention above one half" in place of "the largest", this fails."""
    document = circuit()
    assert claims.header(document) == "All heads map key pos 5 to query pos 8"
    row = document.patterns[11][7][7]
    row[2] = 0.95  # another key gets more
    assert claims.header(document) == "4 of 5 heads map key pos 5 to query pos 8"
    for layer, head in CHOSEN:
        document.patterns[layer][head][7][2] = 0.95
    assert claims.header(document) == "None of 5 heads maps key pos 5 to query pos 8"


def test_one_head_and_none():
    assert claims.header(circuit(chosen=[(9, 7)])) == "The head maps key pos 5 to query pos 8"
    assert claims.header(circuit(chosen=[])) == "No head carries the target"


def test_without_maps_more_than_half_of_the_attention_is_needed():
    document = circuit(maps=False)
    document.heads[0].attention = 0.5
    assert claims.header(document).startswith("4 of 5")


def test_the_share_is_about_the_heads_that_are_drawn():
    document = circuit()
    assert document.shown.share_positive == 0.786
    assert claims.by_whom(document) == "these 5 heads"
    document.shown.heads = ["L1-H1", "L2-H2"]
    assert claims.by_whom(document) == "L1-H1, L2-H2"


def test_sentences_carry_the_baseline():
    drawn, chosen, random = claims.causal_sentences(circuit())
    assert "64%" in drawn and "3.22" in drawn
    assert "6 heads" in chosen and "3.61" in chosen
    assert "200 random sets of 6 heads" in random and "0.0213" in random and "0.312" in random


def test_a_refused_share_is_said_to_be_refused():
    document = circuit()
    document.shown.share_positive = None
    document.shown.share_causal = None
    assert "No share is given" in claims.share_sentence(document)
    assert "n/a" in claims.causal_sentences(document)[0]


def test_the_target_is_not_drawn_over_its_token_too():
    document = circuit()
    drawn = [c.name for c in document.concepts if not claims.is_target(document, c)]
    assert drawn == ["opposite", "large", "brackets"]
