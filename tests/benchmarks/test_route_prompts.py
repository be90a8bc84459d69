"""The prompts of the route benchmarks, and one short run of both.

Mutations tried by hand, each of which fails here: halves by single words, not pairs; the other
word's filler drawn anew.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import route_prompts
from saekit.model.loading import load_model
from saekit.text import relational

ROOT = Path(__file__).parents[2]
MAKERS = (route_prompts.opposite_prompts, route_prompts.story_prompts)


@pytest.fixture(scope="module")
def model():
    return load_model("gpt2-mini")


@pytest.mark.parametrize("make", MAKERS)
def test_prompts_differ_in_one_word(model, make):
    prompts = make(model, "reporting", 200)
    assert len(prompts) == 200
    assert len({(p.text, p.other_text) for p in prompts}) > 190
    for prompt in prompts:
        one, two = model.tokens(prompt.text), model.tokens(prompt.other_text)
        assert len(one) == len(two)
        assert [i for i, (a, b) in enumerate(zip(one, two, strict=True), 1) if a != b] == [
            prompt.position
        ]
        assert model.vocabulary[one[prompt.position - 1]].strip() == prompt.word
        assert model.vocabulary[two[prompt.position - 1]].strip() == prompt.other_word
        assert prompt.answers and prompt.other_answers


@pytest.mark.parametrize("make", MAKERS)
def test_halves_share_no_word(model, make):
    development, reporting = (make(model, half, 150) for half in route_prompts.HALVES)

    def words(prompts):
        return {word for p in prompts for word in (p.word, p.other_word)}

    assert not words(development) & words(reporting)
    assert not {p.group for p in development} & {p.group for p in reporting}
    assert not {p.text for p in development} & {p.text for p in reporting}


def test_answers_are_the_opposites_and_the_names(model):
    for prompt in route_prompts.opposite_prompts(model, "reporting", 60):
        said = {model.vocabulary[token].strip() for token in prompt.answers}
        whole = relational.opposites()[prompt.word]
        assert all(any(word.startswith(token) for word in whole) for token in said)
    for prompt in route_prompts.story_prompts(model, "reporting", 60):
        assert {model.vocabulary[t] for t in prompt.answers} == {f" {prompt.word}"}
        assert {model.vocabulary[t] for t in prompt.other_answers} == {f" {prompt.other_word}"}
        assert prompt.text.count(prompt.word) == 1


def document(*command: str) -> dict:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_short_run_of_swaps():
    found = document("benchmarks/swaps.py", "--prompts", "4", "--development", "2", "--rows")
    assert next(iter(found)) == "summary"
    for summary in found["summary"].values():
        low, high = summary["features"]["interval"]
        assert low <= summary["features"]["share"] <= high
        assert summary["features"]["share"] > summary["random_features"]["share"]
    assert len(found["rows"]["stories"]) == 4


@pytest.mark.slow
def test_a_short_run_of_routes():
    found = document("benchmarks/routes.py", "--prompts", "5", "--random-sets", "5")
    assert list(found) == ["summary", "seed_prompt"]
    for summary in found["summary"].values():
        assert summary["prompts"] == 5
        assert summary["largest_completeness_error"] <= 1e-4
        assert summary["drop_ratio"]["ratio"] > 1
