"""The examples in docstrings hold: `call(...) == value` in running text, and those after `>>>`."""

import ast
import doctest
import importlib
import re

import pytest

from tests.test_one_way import ROOT, SOURCES

_CLAIM = re.compile(r"`([a-z_]\w*\([^`]*\) == [^`]+)`")


def _docstrings(module: str) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(SOURCES[module]) if isinstance(node, kinds)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


CLAIMS = [
    (module, claim)
    for module in SOURCES
    for text in _docstrings(module)
    for claim in _CLAIM.findall(text)
]
WITH_SESSIONS = [module for module in SOURCES if any(">>>" in text for text in _docstrings(module))]


def test_there_are_examples():
    assert len(CLAIMS) >= 20 and len(WITH_SESSIONS) >= 4


@pytest.mark.parametrize(("module", "claim"), CLAIMS, ids=[claim for _, claim in CLAIMS])
def test_a_claim_holds(module, claim):
    names = vars(importlib.import_module(module))
    assert eval(claim, dict(names)), claim


@pytest.mark.slow
@pytest.mark.parametrize("module", WITH_SESSIONS)
def test_a_session_runs(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 and result.failed == 0


def test_no_example_is_skipped():
    assert not any("doctest: +SKIP" in text for module in SOURCES for text in _docstrings(module))
