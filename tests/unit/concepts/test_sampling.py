from itertools import cycle, islice

from saekit.concepts.sampling import Sampler, half_of
from saekit.text import relational


def documents(n):
    """Every 50th document has the rare word."""
    return [f"Sentence {i} with a {'rAre' if i % 50 == 0 else 'plain'} word." for i in range(n)]


def test_both_halves_have_text():
    assert {half_of(d) for d in islice(relational.documents(seed=1), 50)} == {0, 1}


def test_strata_divide_the_text():
    sampler = Sampler(documents(2000), ["rare"])
    read = [list(sampler.read(stratum)) for stratum in sampler.strata]
    # 500 pieces wait per stratum, so what came meanwhile is dropped, and counted
    assert all("rAre" in piece for part in (read[0], read[2]) for piece in part)
    assert not any("rAre" in piece for part in (read[1], read[3]) for piece in part)
    for stratum, part in zip(sampler.strata, read, strict=True):
        assert {half_of(piece) for piece in part} == {stratum.half}
    assert len(read[0]) + len(read[2]) == 40
    assert sum(s.met for s in sampler.strata) == sum(map(len, documents(2000)))


def test_frequent_words_are_left_alone():
    for words, wanted in ((["sentence"], 0), ([], 0), (["rare"], 0.5), (["rare", "word"], 0.5)):
        sampler = Sampler(documents(1000), words)
        assert [sampler.share(s) for s in sampler.strata] == [wanted, 1 - wanted] * 2


def test_a_repeated_text_is_read_once():
    sampler = Sampler(cycle(documents(60)), [])
    read = [piece for stratum in sampler.strata for piece in sampler.read(stratum)]
    assert sorted(read) == sorted(documents(60))
