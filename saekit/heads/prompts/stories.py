"""What every head does on two-name stories: writing, attending, and what removing it changes.

A story names two people, one of them twice; the other one (the indirect object, IO) is the
answer: "When Mary and John went to the store, John gave a drink to" -> " Mary".  A *name logit* is
the logit of a name minus the mean over all other first names (those of the story left out), so
that a head which raises all names alike counts for nothing.  At the last position of each story,
for every head:

    raises   name logit of IO, and of S, that the head writes directly (final LayerNorm frozen)
    attends  its attention to IO, and to S (all its places)
    drop     fall of IO's name logit when the head is removed there (its z set to 0), alone or
             after other heads are removed already (`drops_after`)
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from saekit.coordinates import Head
from saekit.errors import InputError
from saekit.model.exact import Edits, ExactModel, Forward
from saekit.model.loading import LanguageModel
from saekit.text import relational

N_STORIES = 80  # the standard error of a share is then at most 0.056
MIN_NAMES = 20  # single-token names that a model must have for stories to differ
BATCH = 96  # head sets per run: one token each


@dataclass(frozen=True)
class Story:
    """A story and its two names.

    Attributes:
        ids: with BOS in front where the model is read so.
        answer, other: token ids of IO and S.
        answer_at, other_at: tensor indices of the two in `ids`.
        controls: token ids of all other first names.
    """

    ids: Int[Tensor, " pos"]
    answer: int
    other: int
    answer_at: tuple[int, ...]
    other_at: tuple[int, ...]
    controls: Int[Tensor, " name"]


@dataclass(frozen=True)
class StoryMeasures:
    """One row per story; see the module's first lines.

    Attributes:
        name_logit: of IO, by the whole model.
        correct: 1 where IO is the top token of the whole vocabulary.
        raises_unrelated: as `raises_answer` for IO of the next story: what chance gives.
    """

    name_logit: Float[np.ndarray, " story"]
    correct: Float[np.ndarray, " story"]
    raises_answer: Float[np.ndarray, "story layer head"]
    raises_other: Float[np.ndarray, "story layer head"]
    raises_unrelated: Float[np.ndarray, "story layer head"]
    to_answer: Float[np.ndarray, "story layer head"]
    to_other: Float[np.ndarray, "story layer head"]
    drop: Float[np.ndarray, "story layer head"]


def _places(ids: Int[Tensor, " pos"], token: int) -> tuple[int, ...]:
    return tuple((ids == token).nonzero().flatten().tolist())


def two_name_stories(model: LanguageModel, n: int = N_STORIES, seed: int = 0) -> list[Story]:
    """Stories with names that are single tokens; pairs of names that saekit never trains on.

    Raises:
        InputError: the tokenizer has fewer than `MIN_NAMES` of saekit's names as single tokens.
    """
    names = relational.first_names()
    encoded = model.encode_batch([f" {name}" for name in names])
    token = {name: ids[0] for name, ids in zip(names, encoded, strict=True) if len(ids) == 1}
    if len(token) < MIN_NAMES:
        raise InputError(
            f"{len(token)} of {len(names)} first names are single tokens of {model.id}; two-name "
            f"stories need {MIN_NAMES}."
        )
    every = torch.tensor(sorted(token.values()), device=model.device)
    rng = random.Random(seed)
    found: list[Story] = []
    for _ in range(100 * n):
        sentence = relational.sentence("names", rng, held_out=True)
        first, second, giver = sentence.words
        if first not in token or second not in token:
            continue
        answer, other = token[second if giver == first else first], token[giver]
        ids = model.prompt(sentence.prompt)
        places = _places(ids, answer), _places(ids, other)
        if len(places[0]) == 1 and len(places[1]) == 2:
            found.append(
                Story(ids, answer, other, *places, every[(every != answer) & (every != other)])
            )
        if len(found) == n:
            return found
    raise InputError(f"{model.id} splits the names of two-name stories: only {len(found)} of {n}.")


def without_heads(
    exact: ExactModel, clean: Forward, sets: Sequence[Sequence[Head]]
) -> Float[Tensor, "sets d_vocab"]:
    """Logits at the last position with each head set removed there (z = 0), one run per set."""
    last = len(clean.ids) - 1
    parts = []
    for at in range(0, len(sets), BATCH):
        some = sets[at : at + BATCH]
        keep = clean.resid.new_ones(exact.n_layers, len(some), exact.n_heads, 1, last + 1)
        for row, heads in enumerate(some):
            for layer, head in heads:
                keep[layer, row, head] = 0
        start = min((layer for heads in some for layer, _ in heads), default=0)
        resid = exact.rerun(clean, Edits(keep=keep), (last, last), start, batch=len(some))
        parts.append(exact.unembed(resid[:, 0])[0])
    return torch.cat(parts)


def _all_heads(exact: ExactModel) -> list[Head]:
    return [(layer, head) for layer in range(exact.n_layers) for head in range(exact.n_heads)]


def name_logit(logits: Float[Tensor, "*sets d_vocab"], story: Story) -> Float[Tensor, "*sets"]:
    """IO's logit minus the mean over all names that are not in the story."""
    return logits[..., story.answer] - logits[..., story.controls].mean(-1)


def written(
    exact: ExactModel, clean: Forward, names: Sequence[int], story: Story
) -> Float[Tensor, "name layer head"]:
    """Name logit that each head writes directly at the last position, for some names."""
    last = len(clean.ids) - 1
    columns = exact.W_U[:, list(names)] - exact.W_U[:, story.controls].mean(1, keepdim=True)
    directions = exact.gamma_f[:, None] * columns
    directions = (directions - directions.mean(0)) / clean.scale_f[last]  # LN_f centres its input
    return (exact.head_outputs(clean, last) @ directions).movedim(-1, 0)


def measure_stories(exact: ExactModel, stories: Sequence[Story]) -> StoryMeasures:
    """Every head on every story, heads removed one at a time."""
    heads = _all_heads(exact)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in StoryMeasures.__annotations__}
    following = [*stories[1:], stories[0]]
    bar = tqdm(stories, desc="two-name stories", unit=" stories", delay=2)
    for story, after in zip(bar, following, strict=True):
        clean = exact.run(story.ids)
        logit = name_logit(clean.logits[-1], story)
        removed = name_logit(without_heads(exact, clean, [[head] for head in heads]), story)
        names = (story.answer, story.other, after.answer)
        raises = written(exact, clean, names, story)
        pattern = clean.pattern[:, :, -1]
        values = {
            "name_logit": logit,
            "correct": (clean.logits[-1].argmax() == story.answer).float(),
            "raises_answer": raises[0],
            "raises_other": raises[1],
            "raises_unrelated": raises[2],
            "to_answer": pattern[..., list(story.answer_at)].sum(-1),
            "to_other": pattern[..., list(story.other_at)].sum(-1),
            "drop": (logit - removed).view(exact.n_layers, exact.n_heads),
        }
        for name, value in values.items():
            rows[name].append(value.double().cpu().numpy())
    return StoryMeasures(**{name: np.stack(value) for name, value in rows.items()})


def drops_after(
    exact: ExactModel, stories: Sequence[Story], removed: Sequence[Head]
) -> Float[np.ndarray, "story layer head"]:
    """Fall of IO's name logit by each head when `removed` are removed already (0 for those)."""
    rest = [head for head in _all_heads(exact) if head not in removed]
    sets = [list(removed), *([*removed, head] for head in rest)]
    rows = np.zeros((len(stories), exact.n_layers, exact.n_heads))
    for row, story in enumerate(tqdm(stories, desc="backups", unit=" stories", delay=2)):
        found = name_logit(without_heads(exact, exact.run(story.ids), sets), story)
        fall = (found[0] - found[1:]).double().cpu().numpy()
        for (layer, head), value in zip(rest, fall, strict=True):
            rows[row, layer, head] = value
    return rows
