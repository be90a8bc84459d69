"""The causal check: remove the highest heads on prompts of the relation, beside random heads.

Prompts of a relation: two-name stories for name copying; the sentence `The opposite of "large" is
"` for the relations that saekit's sentences name; for any other, a list of three examples, `hot:
cold`, and the word.  Heads are removed at the last position (z = 0).  Accuracy is the share of
prompts whose right answer is the top token of the whole vocabulary.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from saekit.coordinates import Head, head_name
from saekit.heads.document_parts import CausalCheck, CausalRow
from saekit.heads.pairs import TokenPairs
from saekit.heads.prompts.stories import two_name_stories, without_heads
from saekit.model.exact import ExactModel
from saekit.model.loading import LanguageModel
from saekit.text import relational

N_PROMPTS = 100  # an accuracy is then known to 0.05
RANDOM_SETS = 20
SIZES = (1, 2, 3, 5, 8, 12, 20)
EXAMPLES = 3
PHRASES = {  # relation -> kind of sentence of the generator
    "general_copying": "copy", "opposites": "opposite", "synonyms": "synonym",
    "comparatives": "comparative", "plurals": "plural", "past_tenses": "past",
    "first_letters": "letter",
}  # fmt: skip

Job = tuple[torch.Tensor, frozenset[int]]
"""Token ids of a prompt, and the tokens that are a right answer."""


def _first_token(model: LanguageModel, text: str) -> int:
    return model.tokens(text)[0]


def relation_prompts(
    model: LanguageModel, pairs: TokenPairs, n: int = N_PROMPTS, seed: int = 0
) -> tuple[str, list[Job]]:
    """What the prompts are, in words, and up to `n` of them."""
    name = pairs.relation.name
    if name == "name_copying":
        stories = two_name_stories(model, n, seed)
        return "two-name stories", [(story.ids, frozenset([story.answer])) for story in stories]
    answers: dict[str, list[str]] = {}
    for source, target in pairs.words:
        answers.setdefault(source.strip(), []).append(target.strip())
    rng = random.Random(seed)
    words = rng.sample(sorted(answers), min(n, len(answers)))
    jobs: list[Job] = []
    for word in words:
        if name in PHRASES:
            sentence = relational.relation_sentence(PHRASES[name], word, "", relational.SEED_FORM)
            prompt, space = sentence.prompt, ""
        else:
            others = rng.sample([w for w in sorted(answers) if w != word], EXAMPLES)
            shown = "".join(f"{other}: {answers[other][0]}\n" for other in others)
            prompt, space = f"{shown}{word}:", " "
        right = frozenset(_first_token(model, f"{space}{answer}") for answer in answers[word])
        jobs.append((model.prompt(prompt), right))
    kind = f'sentences like "{prompt}"' if name in PHRASES else f"lists of {EXAMPLES} examples"
    return kind, jobs


def random_head_sets(
    heads: Sequence[Head], shape: tuple[int, int], count: int, rng: random.Random
) -> list[list[Head]]:
    """Random sets with as many heads in each layer as `heads`, none of them in `heads`.

    Where a layer has not enough other heads, other layers give the rest.
    """
    n_layers, n_heads = shape
    others = {
        layer: [(layer, h) for h in range(n_heads) if (layer, h) not in heads]
        for layer in range(n_layers)
    }
    sets = []
    for _ in range(count):
        chosen: list[Head] = []
        for layer, free in others.items():
            wanted = sum(head[0] == layer for head in heads)
            chosen += rng.sample(free, min(wanted, len(free)))
        rest = [head for free in others.values() for head in free if head not in chosen]
        missing = min(len(heads) - len(chosen), len(rest))
        sets.append(chosen + rng.sample(rest, missing))
    return sets


def causal_check(
    model: LanguageModel,
    exact: ExactModel,
    pairs: TokenPairs,
    heads: Sequence[Head],
    seed: int = 0,
    n: int = N_PROMPTS,
) -> CausalCheck:
    """Accuracy on the relation's prompts with the highest heads removed, and with random ones.

    Args:
        heads: the highest first.

    Returns:
        A row for the first 1, 2, 3, 5, ... heads.
    """
    kind, jobs = relation_prompts(model, pairs, n, seed)
    rng = random.Random(seed)
    sizes = [size for size in SIZES if size <= len(heads)]
    shape = (exact.n_layers, exact.n_heads)
    sets: list[list[Head]] = [[]]
    for size in sizes:
        chosen = list(heads[:size])
        sets += [chosen, *random_head_sets(chosen, shape, RANDOM_SETS, rng)]
    right = np.zeros((len(jobs), len(sets)))
    for row, (ids, answers) in enumerate(tqdm(jobs, desc="removing heads", delay=2)):
        top = without_heads(exact, exact.run(ids), sets).argmax(-1).tolist()
        right[row] = [token in answers for token in top]
    accuracy = right.mean(0)
    rows = []
    for place, size in enumerate(sizes):
        at = 1 + place * (1 + RANDOM_SETS)
        by_chance = accuracy[at + 1 : at + 1 + RANDOM_SETS]
        rows.append(
            CausalRow(
                n=size,
                heads=[head_name(*head) for head in heads[:size]],
                accuracy=round(float(accuracy[at]), 4),
                random_mean=round(float(by_chance.mean()), 4),
                random_range=[
                    round(float(by_chance.min()), 4),
                    round(float(by_chance.max()), 4),
                ],
                random_sets=RANDOM_SETS,
            )
        )
    return CausalCheck(
        what=f"accuracy on {len(jobs)} {kind}; intact {accuracy[0]:.3f}",
        prompts=len(jobs),
        intact=round(float(accuracy[0]), 4),
        seed=seed,
        rows=rows,
    )
