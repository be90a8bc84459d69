import shutil

import h5py
import pytest

from saekit.errors import FormatError, InputError, MismatchError
from saekit.features.index.feature_index import FeatureIndex


def test_ranks_and_filters(index):
    token = int(index.token_counts.argmax())
    for rank in ("match", "purity", "lift", "mean", "max"):
        values = [getattr(hit, rank) for hit in index.by_token(token, rank=rank)]
        assert values == sorted(values, reverse=True)
    densities = [hit.density for hit in index.by_token(token, rank="density")]
    assert densities == sorted(densities)
    limit = densities[len(densities) // 2]
    assert all(hit.density <= limit for hit in index.by_token(token, max_density=limit))
    assert {hit.layer for hit in index.by_token(token, layers=[2], top=99)} == {2}
    assert len(index.by_token(token, top=3)) == 3
    assert all(hit.share >= 0.5 for hit in index.by_token(token, min_share=0.5))


def test_match_is_one_for_the_feature_of_a_token_alone(index):
    """Feature 0/5 was planted on " large"; its largest activation anywhere is there.

    Mutation tried: `match` without the peak, and `peak` as the mean on the token.
    """
    best = index.by_token(" large", layers=[0])[0]
    assert best.name == "0/5"
    assert (best.share, best.peak) == (1, 1)
    for hit in index.by_token(" large", top=99):
        largest = index.maxima(hit.layer)[hit.feature]
        assert hit.peak == pytest.approx(min(hit.max / largest, 1), rel=1e-3)
        assert hit.match == pytest.approx(hit.purity * hit.share * hit.peak)
        assert hit.match <= hit.purity


def test_the_example_shown_for_a_token_is_on_the_token_where_one_is_stored(index):
    """Mutation tried: `top_example` without looking for the token."""
    elsewhere = 0
    for token in range(0, 400):
        for hit in index.by_token(token, top=99) if index.token_counts[token] else ():
            record = index.feature(hit.layer, hit.feature)
            stored = [e.token_id for e in record.examples + record.samples]
            shown = index.top_example(hit.layer, hit.feature, token)
            if token in stored:
                assert shown is not None and shown.token_id == token
                elsewhere += stored[0] != token
            else:
                assert shown == record.examples[0]
    assert elsewhere > 0


def test_the_record_of_a_feature(index, live_feature):
    record = index.feature(2, live_feature)
    assert record.name == f"2/{live_feature}"
    assert record.quantile(0) == 0
    assert record.quantile(record.edges[-1]) == 1
    assert index.top_example(2, live_feature) == record.examples[0]
    assert index.means(2)[live_feature] == pytest.approx(record.mean)


def test_a_feature_that_never_fires(index):
    dead = int(index.densities(2).argmin())
    record = index.feature(2, dead)
    assert (record.count, record.max, record.examples, record.top_tokens) == (0, 0, [], [])
    assert index.top_example(2, dead) is None
    assert record.quantile(1) == 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda index: index.feature(2, 70), "Feature 2/70 does not exist: .* 0 to 69"),
        (lambda index: index.feature(2, -1), "does not exist"),
        (lambda index: index.feature(1, 0), r"Layer 1 is not in .*\[0, 2, 3\]"),
        (lambda index: index.densities(9), "Layer 9"),
        (lambda index: index.by_token("large", layers=[1]), "Layer 1"),
        (lambda index: index.by_token("large", rank="best"), "match, purity, lift, mean, max, den"),
        (lambda index: index.by_token("large", top=0), "0 features cannot be listed"),
        (lambda index: index.by_token("large", max_density=-0.1), "density is -0.1; it must be"),
        (lambda index: index.by_token(" The opposite"), "is not one token of plain but several"),
        (lambda index: index.by_token("\u2603"), "No token of plain spells"),
        (lambda index: index.by_token(10**6), "does not exist"),
    ],
)
def test_wrong_questions(index, ask, message):
    with pytest.raises(InputError, match=message):
        ask(index)


@pytest.fixture
def copied(index, tmp_path):
    """A copy of the index, without dictionaries beside it."""
    path = tmp_path / "index.h5"
    shutil.copy(index.path, path)
    return path


def test_a_copy_opens_alone(copied):
    with FeatureIndex.open(copied.parent) as index:
        assert index.by_token("large")


def test_missing_and_broken_files(copied):
    size = copied.stat().st_size
    cure = f"Build it: saekit index {copied.parent}"
    with pytest.raises(FormatError, match=f"no index at .* {cure}"):
        FeatureIndex.open(copied.parent / "other.h5")
    for keep in (0, 100, size // 2, size - 1):
        copied.write_bytes(copied.read_bytes()[:keep])
        with pytest.raises(FormatError, match=f"cannot be read .* {cure}"):
            FeatureIndex.open(copied)


def test_an_index_of_the_older_version_opens(copied):
    with h5py.File(copied, "r+") as file:
        file.attrs["schema_version"] = 2
    with FeatureIndex.open(copied) as index:
        assert index.by_token("large", rank="max")


def test_files_of_other_kinds(copied):
    with h5py.File(copied, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(FormatError, match="schema_version 99; .* versions 2 to 3"):
        FeatureIndex.open(copied)
    with h5py.File(copied, "r+") as file:
        file.attrs["format"] = "weather"
    with pytest.raises(FormatError, match="not a feature index"):
        FeatureIndex.open(copied)


def test_missing_parts(copied):
    with h5py.File(copied, "r+") as file:
        del file["tokens/mean"]
    with FeatureIndex.open(copied) as index, pytest.raises(FormatError, match="tokens/mean"):
        index.by_token("large")
    with h5py.File(copied, "r+") as file:
        del file.attrs["layers"]
    with pytest.raises(FormatError, match="incomplete"):
        FeatureIndex.open(copied)


def test_an_index_of_other_dictionaries(index, make_set, dictionaries, plain_model):
    # mutation tried: a fingerprint of the shapes alone accepts the other set
    other = make_set(1)
    shutil.copy(index.path, other.path / "index.h5")
    with pytest.raises(MismatchError, match="other dictionaries .* layer 0 is"):
        FeatureIndex.open(other.path)
    with pytest.raises(MismatchError, match="other dictionaries"):
        index.by_text(plain_model, other, "large")
    index.check_dictionaries(dictionaries)
    index.check_folder(dictionaries.path)


def test_an_index_of_another_model(index, make_set):
    other = make_set(0, fingerprint="f" * 64)
    shutil.copy(index.path, other.path / "index.h5")
    with pytest.raises(
        MismatchError, match=f'"plain" with fingerprint {index.fingerprint}; .*ffff'
    ):
        FeatureIndex.open(other.path)
