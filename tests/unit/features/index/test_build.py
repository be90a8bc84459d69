"""The whole index against plain loops over dense activations."""

import resource
import signal

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from saekit.activations import context_rows, residuals
from saekit.errors import FormatError, InputError, MismatchError, TrainingError
from saekit.features.index import build
from saekit.features.index.build import build_index
from saekit.features.index.feature_index import RANKS, FeatureIndex
from saekit.features.output_tokens import output_tokens
from saekit.text import packing

LARGE, SPACE_LARGE = 3, 5  # see conftest.py


@pytest.fixture(scope="module")
def dense(plain_model, dictionaries, documents):
    """Token ids [token] and activations per layer [token, feature], BOS left out."""
    ids, count = [], 0
    for row in context_rows(plain_model, documents, 40):
        ids.append(row)
        count += (row != plain_model.bos).sum()
        if count >= 2500:
            break
    ids = torch.from_numpy(np.stack(ids)).long()
    keep = (ids != plain_model.bos).flatten()
    streams = residuals(plain_model, ids, dictionaries.layers)
    activations = {
        part.layer: part.encode(stream).flatten(0, 1)[keep].numpy()
        for part, stream in zip(dictionaries, streams, strict=True)
    }
    return ids.flatten()[keep].numpy(), activations


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_statistics_of_every_feature(index, dense, layer):
    # mutation tried: keeping the features of BOS positions changes the densities
    tokens, activations = dense[0], dense[1][layer]
    assert index.n_tokens == len(tokens) >= 2500
    active = activations > 0
    assert_allclose(index.densities(layer), active.mean(0), rtol=1e-6)
    assert_allclose(index.maxima(layer), activations.max(0), rtol=1e-5)
    for feature in (0, LARGE, SPACE_LARGE, 33, 69):
        values = activations[active[:, feature], feature]
        record = index.feature(layer, feature)
        assert record.count == len(values)
        if not len(values):
            assert record.examples == record.samples == record.top_tokens == []
            continue
        assert_allclose(record.mean, values.mean(), rtol=1e-4)
        assert record.histogram.sum() == len(values)
        # an activation at the edge of two bins may fall into either: float rounding
        assert abs(record.histogram - np.histogram(values, record.edges)[0]).sum() <= 2
        on = tokens[active[:, feature]]
        mass = np.bincount(on, weights=values)
        best = record.top_tokens[0]
        assert_allclose(mass[best.token_id], mass.max(), rtol=1e-5)
        assert best.count == (on == best.token_id).sum()
        assert_allclose(best.mean, values[on == best.token_id].mean(), rtol=5e-3)
        assert_allclose(best.max, values[on == best.token_id].max(), rtol=5e-3)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_features_of_a_token(index, dense, layer):
    tokens, activations = dense[0], dense[1][layer]
    token = int(np.bincount(tokens).argmax())
    here = tokens == token
    hits = index.by_token(token, layers=[layer], top=1000, rank="purity")
    active = activations > 0
    share = active[here].mean(0)
    with np.errstate(invalid="ignore"):
        lift = share / active.mean(0)
        purity = activations[here].sum(0) / activations.sum(0)
    listed = np.flatnonzero((share >= 0.1) & (active[here].sum(0) >= 2))
    listed = listed[np.argsort(-purity[listed], kind="stable")][:20]
    listed = [f for place, f in enumerate(listed) if place < 5 or purity[f] >= 0.01]
    assert {hit.feature for hit in hits} >= set(listed)
    assert len(hits) <= len(listed) + 25  # 5 by each of the other ranks
    assert [hit.purity for hit in hits] == sorted((hit.purity for hit in hits), reverse=True)
    for hit in hits:
        values = activations[here & active[:, hit.feature], hit.feature]
        assert (hit.count, hit.token_count) == (len(values), here.sum())
        assert_allclose(hit.share, share[hit.feature])
        assert_allclose(hit.lift, lift[hit.feature], rtol=1e-5)
        assert_allclose(hit.purity, purity[hit.feature], rtol=5e-3)
        assert_allclose(hit.density, active[:, hit.feature].mean())
        assert_allclose([hit.mean, hit.max], [values.mean(), values.max()], rtol=5e-3)


@pytest.fixture(scope="module")
def short_lists(plain_model, dictionaries, documents, tmp_path_factory):
    """The index with one feature per token and layer beside those of each rank."""
    path = tmp_path_factory.mktemp("short") / "index.h5"
    build_index(plain_model, dictionaries, documents, path, tokens=2500, context=40, per_token=1)
    with FeatureIndex.open(path) as opened:
        yield opened


@pytest.mark.parametrize("rank", RANKS)
def test_the_first_features_of_every_rank_are_listed(short_lists, dense, rank):
    """Against a table of all features on all tokens.

    Mutation tried: four of each rank instead of five.
    """
    tokens = dense[0]
    for layer, activations in dense[1].items():
        active = activations > 0
        for token in np.bincount(tokens).argsort()[-30:].tolist():
            here = tokens == token
            count, mass = active[here].sum(0), activations[here].sum(0)
            with np.errstate(invalid="ignore", divide="ignore"):
                share, mean, peak = count / here.sum(), mass / count, activations[here].max(0)
                purity, density = mass / activations.sum(0), active.mean(0)
                match = purity * share * peak / activations.max(0)
                lift = share / density
            score = {
                "match": match, "purity": purity, "lift": lift, "mean": mean, "max": peak,
                "density": -density,
            }[rank]  # fmt: skip
            ties = (lift,) if rank == "density" else (mean, count)
            order = np.lexsort((*(-column for column in ties), -score))
            order = order[((share >= 0.1) & (count >= 2))[order]]
            best = order[:5]
            hits = short_lists.by_token(token, layers=[layer], top=1000, rank=rank)
            assert {hit.feature for hit in hits} >= set(best.tolist())
            shown = [score[hit.feature] for hit in hits[: len(best)]]
            assert_allclose(shown, score[best], rtol=0.02)  # stored shares are rounded


def test_examples_of_every_feature(index, dense, plain_model):
    for layer in (0, 2, 3):
        activations = dense[1][layer]
        for feature in range(0, 70, 7):
            record = index.feature(layer, feature)
            values = [example.value for example in record.examples]
            assert values == sorted(values, reverse=True)
            if record.count:
                assert_allclose(values[0], activations[:, feature].max(), rtol=1e-3)
            for group in (record.examples, record.samples):
                assert len({example.context for example in group}) == len(group)
                for example in group:
                    assert plain_model.bos not in example.token_ids
                    assert example.activations[example.position] == example.value > 0
                    assert len(example.tokens) == len(example.activations) <= 24
            assert len(record.samples) <= 3


def test_windows_are_the_activations_of_that_text(index, plain_model, dictionaries, live_feature):
    """Recompute one example from the stored row of text."""
    example = index.feature(2, live_feature).examples[0]
    row = torch.from_numpy(index.read("contexts", example.context).astype(np.int64))
    stream = residuals(plain_model, row[None], [2])[0, 0]
    values = dictionaries[2].encode(stream)[:, live_feature].numpy()
    first = example.place - example.position
    window = values[first : first + len(example.tokens)]
    assert row[first : first + len(example.tokens)].tolist() == example.token_ids
    assert_allclose(example.activations, window, atol=index.maxima(2)[live_feature] / 255)
    assert ((np.array(example.activations) > 0) == (window > 0)).all()


def test_planted_features_are_found_by_their_token(index):
    hits = index.by_token(" large", layers=[0])
    assert (hits[0].feature, hits[0].token, hits[0].share) == (SPACE_LARGE, " large", 1.0)
    assert hits[0].purity == pytest.approx(1, rel=5e-3)
    assert hits[0].lift == pytest.approx(index.n_tokens / hits[0].token_count)
    for example in index.feature(0, SPACE_LARGE).examples:
        assert example.tokens[example.position] == " large"
    both = index.by_token("large", layers=[0])
    assert {(hit.feature, hit.token) for hit in both[:2]} == {
        (LARGE, "large"), (SPACE_LARGE, " large")
    }  # fmt: skip
    record = index.feature(0, LARGE)
    assert [item.token for item in record.top_tokens] == ["large"]
    assert record.max == pytest.approx(1, rel=1e-5)
    assert record.mean == pytest.approx(1, rel=1e-5)


def test_output_tokens_go_through_the_final_layernorm(plain_model, dictionaries):
    # mutations tried: no centring of the direction, no gamma_f; each changes the result
    tokens, values = output_tokens(plain_model, dictionaries[3].W_dec, 5)
    norm, head = plain_model.hf.transformer.ln_f, plain_model.hf.lm_head
    with torch.no_grad():
        for feature in (0, 69):
            d = 1e3 * dictionaries[3].W_dec[feature]  # large, so that epsilon does not matter
            logits = head(norm(d)) - head(norm.bias)  # = logits of d / std(d)
            logits = (logits - logits.mean()) * d.std(unbiased=False) / 1e3
            assert_allclose(values[feature, :5], logits.topk(5).values, rtol=1e-3)
            assert_allclose(values[feature, 5:], logits.topk(5, largest=False).values, rtol=1e-3)
            assert tokens[feature, 0] == logits.argmax()
            assert tokens[feature, 5] == logits.argmin()


def test_output_tokens_in_the_index(index, plain_model, dictionaries):
    record = index.feature(3, 69)
    tokens, values = output_tokens(plain_model, dictionaries[3].W_dec, 10)
    assert [item.token_id for item in record.output_top] == tokens[69, :10].tolist()
    assert [item.token_id for item in record.output_bottom] == tokens[69, 10:15].tolist()
    assert_allclose([item.value for item in record.output_top], values[69, :10], rtol=5e-3)


def test_token_counts_leave_bos_out(index, dense, plain_model):
    assert_array_equal(index.token_counts, np.bincount(dense[0], minlength=plain_model.d_vocab))
    assert index.token_counts[plain_model.bos] == 0
    assert index.by_token(plain_model.bos) == []


def test_the_same_call_gives_the_same_index(
    index, plain_model, dictionaries, documents, live_feature, tmp_path, monkeypatch
):
    monkeypatch.setattr(build, "_PASS_TOKENS", 200)  # other chunks: only the samples may differ
    path = tmp_path / "again.h5"
    build_index(plain_model, dictionaries, documents, path, tokens=2500, context=40, examples=4)
    with FeatureIndex.open(path) as again:
        for layer in (0, 2, 3):
            assert_allclose(index.densities(layer), again.densities(layer), atol=1e-3)
        one, other = index.feature(2, live_feature), again.feature(2, live_feature)
        assert abs(one.histogram - other.histogram).sum() <= 2
        assert_allclose(
            [e.value for e in one.examples], [e.value for e in other.examples], rtol=5e-3
        )
        assert [t.token for t in one.top_tokens] == [t.token for t in other.top_tokens]
        hits = [(h.name, h.count, h.token) for h in index.by_token("large")]
        assert hits == [(h.name, h.count, h.token) for h in again.by_token("large")]


def test_what_cannot_be_built(plain_model, dictionaries, tiny_model, make_set, tmp_path):
    path = tmp_path / "index.h5"
    path.write_text("the old one")
    for arguments, message in (
        ({"documents": ["too short"]}, "shorter than one context"),
        ({"tokens": 0}, "tokens is 0"),
        ({"layers": [1]}, "no dictionary for layer 1"),
    ):
        given = {"documents": ["a b c"] * 100, **arguments}
        with pytest.raises(InputError, match=message):
            build_index(plain_model, dictionaries, out_path=path, **given)
    with pytest.raises(MismatchError, match="fingerprint"):
        build_index(tiny_model, dictionaries, ["a"], path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot"):
        build_index(plain_model, dictionaries, ["a"], tmp_path / "file" / "index.h5")
    assert path.read_text() == "the old one"
    assert {entry.name for entry in tmp_path.iterdir()} == {"index.h5", "file"}


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("slot", [0, 1])
def test_activations_that_are_not_finite_are_said(
    slot, wrong, plain_model, dictionaries, documents, tmp_path, monkeypatch
):
    """Mutation tried: without the question in `_read_text` an index is written."""

    def spoiled(*given):
        streams = residuals(*given)
        streams[slot, 1, 7] = wrong
        return streams

    monkeypatch.setattr(build, "residuals", spoiled)
    with pytest.raises(TrainingError, match=f"layer {dictionaries.layers[slot]} are not finite"):
        build_index(plain_model, dictionaries, documents, tmp_path / "index.h5", 500, 40)
    assert not list(tmp_path.iterdir())


class Killed(Exception):
    pass


def test_a_stopped_build_goes_on_to_the_same_index(
    plain_model, dictionaries, documents, tmp_path, monkeypatch
):
    # mutations tried: without the generator's state the samples differ; without the kept rows the
    # correlations do; a checkpoint that cuts its last chunk loses rows
    monkeypatch.setattr(build, "_PASS_TOKENS", 200)
    options = {"tokens": 2500, "context": 40, "checkpoint_tokens": 600}
    whole, stopped = tmp_path / "whole.h5", tmp_path / "stopped.h5"
    build_index(plain_model, dictionaries, documents, whole, **options)

    def until_killed():
        for number, document in enumerate(documents):
            if number == 24:  # after at least one checkpoint
                raise Killed
            yield document

    monkeypatch.setattr(packing, "_BATCH", 4)  # documents are read as they are needed
    with pytest.raises(Killed):
        build_index(plain_model, dictionaries, until_killed, stopped, **options)
    partial = tmp_path / "stopped.h5.partial"
    assert partial.exists() and not stopped.exists()
    again = {**options, "resume": True}
    with pytest.raises(InputError, match="give the same text"):
        build_index(plain_model, dictionaries, documents[1:], stopped, **again)
    with pytest.raises(MismatchError, match="another seed"):
        build_index(plain_model, dictionaries, documents, stopped, seed=1, **again)
    data = partial.read_bytes()
    partial.write_bytes(data[:1000])
    with pytest.raises(FormatError, match="delete it"):
        build_index(plain_model, dictionaries, documents, stopped, **again)
    partial.write_bytes(data)
    build_index(plain_model, dictionaries, documents, stopped, **again)
    assert stopped.read_bytes() == whole.read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize("limit", [1000, 20_000])
def test_a_full_disk_keeps_the_old_index(plain_model, dictionaries, documents, tmp_path, limit):
    path = tmp_path / "index.h5"
    path.write_text("the old one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails with an OSError
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(InputError, match="Cannot write .*index.h5"):
            build_index(plain_model, dictionaries, documents, path, tokens=2500, context=40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.h5"]
