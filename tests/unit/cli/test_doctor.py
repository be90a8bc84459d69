"""`saekit doctor`, and `saekit` without a command."""

import json
from importlib.metadata import version

import pytest

from saekit.cli import main
from saekit.native import compilation
from saekit.native import library as native_library
from saekit.native.signatures import SIGNATURES
from saekit.sae.kernels import self_check
from saekit.sae.kernels.self_check import Check


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    compilation.compiler.cache_clear()
    native_library.library.cache_clear()
    yield
    compilation.compiler.cache_clear()
    native_library.library.cache_clear()


def document(capsys) -> dict:
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_document(capsys):
    found = document(capsys)
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"].keys() >= {"saekit", "python", "transformers", "numpy", "h5py"}
    assert {row["kernel"] for row in found["kernels"]} == {*SIGNATURES, "triton"}
    assert all(row["active"] is not bool(row["reason"]) for row in found["kernels"])
    assert found["self_check"]["passed"] and found["self_check"]["failed"] == []


def test_without_a_compiler_it_says_so_and_passes(no_compiler, capsys):
    found = document(capsys)
    reasons = {row["reason"] for row in found["kernels"] if row["kernel"] != "triton"}
    assert reasons == {"no C++ compiler (g++) was found"}
    assert found["versions"]["compiler"] == "no C++ compiler (g++) was found"
    if found["self_check"]["device"] == "cpu":
        assert found["self_check"]["kernels"] == "PyTorch"


def test_the_tables_hold_what_the_document_says(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert version("torch") in shown and "token_pairs" in shown and "why not" in shown
    assert shown.count("passed") == 9


def test_a_failed_check_is_one_sentence_and_exit_2(monkeypatch, capsys):
    bad = [Check("activations", 0.5), Check("k largest", float("nan")), Check("Adam's step", 0.0)]
    monkeypatch.setattr(self_check, "check_kernels", lambda device: ("Cpu", bad))
    assert main(["doctor", "--json"]) == 2
    out, error = capsys.readouterr()
    assert json.loads(out)["self_check"]["errors"]["k largest"] is None
    assert error.startswith("saekit: The self-check failed (activations, k largest differ")
    assert error.count("\n") == 1
    assert main(["doctor"]) == 2
    assert "not finite" in capsys.readouterr().out


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("usage: saekit") and "doctor" in out and "train" in out
    assert error == ""
