"""Interventions on concepts of one prompt: change what is there, read the prediction.

What can be changed and how it is written is in changes.py.  Each change stands beside random
features of the same dictionaries, changed by as much (the null), and each swap beside the same
swap of the whole stream (the ceiling).
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.concepts.catalogue import Catalogue
from saekit.errors import InputError
from saekit.model.loading import LanguageModel
from saekit.routes.assembly import predictions
from saekit.routes.circuit import rounded
from saekit.routes.circuit_parts import Prediction
from saekit.routes.intervention.changes import Resolved, Resolver, parse_change
from saekit.routes.intervention.holds import (
    Place,
    Write,
    merged,
    with_features_held,
    with_other_stream,
    with_random_writes,
)
from saekit.routes.intervention.outcomes import Outcome, RandomWrites
from saekit.routes.prompt_run import PromptRun
from saekit.routes.target import Target, TargetChooser
from saekit.sae.storage.dictionary_set import DictionarySet

RANDOM_WRITES = 20  # as many as are needed to say "95% of them"


class Intervener:
    """Outcomes of changes on one prompt, read where the target is."""

    def __init__(self, run: PromptRun, target: Target) -> None:
        self.run, self.exact, self.clean = run, run.exact, run.clean
        self.dictionaries, self.target, self.query = run.dictionaries, target, target.query

    def outcome(self, changes: Sequence[Resolved], random_writes: int, seed: int) -> Outcome:
        """What the changes do, made together."""
        clamps = merged(clamp for change in changes for clamp in change.clamps)
        after, written = with_features_held(
            self.exact, self.clean, self.dictionaries, clamps, self.query
        )
        if not bool(after.isfinite().all()):
            raise InputError(
                f'"{" and ".join(change.text for change in changes)}" is too large a value: '
                "the model's stream overflows."
            )
        before = self.clean.resid[:, self.query]
        top = int(self.exact.unembed(before[-1])[0].argmax())
        layers = sorted({layer for layer, _ in clamps})
        return Outcome(
            change=" and ".join(change.text for change in changes),
            positions=sorted({change.position for change in changes}),
            layers=[layers[0], layers[-1]],
            features=[name for place in sorted(clamps) for name in clamps[place].names()],
            target=self.target.label,
            target_before=rounded(self._value(before)),
            target_after=rounded(self._value(after)),
            before=self._prediction(before),
            after=self._prediction(after),
            before_token=rounded(float(self._probabilities(after)[top])),
            random=self._random(written, self._value(after), top, random_writes, seed),
            ceiling=self._ceiling(changes, list(clamps)),
        )

    def _random(
        self, written: Mapping[Place, Write], after: float, top: int, n: int, seed: int
    ) -> RandomWrites:
        if n == 0:
            return RandomWrites(0, None, None, None)
        streams = with_random_writes(
            self.exact, self.clean, self.dictionaries, written, self.query, n, seed
        )
        before = self._value(self.clean.resid[:, self.query])
        values = [self._value(stream) for stream in streams]
        tops = self.exact.unembed(streams[:, -1])[0].argmax(-1)
        return RandomWrites(
            n=n,
            median_target=rounded(statistics.median(values)),
            share_below=sum(abs(v - before) < abs(after - before) for v in values) / n,
            same_top=float((tops == top).double().mean()),
        )

    def _ceiling(self, changes: Sequence[Resolved], places: list[Place]) -> list[Prediction] | None:
        """Of one swap only: several would need one prompt with all the other words."""
        if len(changes) != 1 or changes[0].other is None:
            return None
        stream = with_other_stream(self.exact, self.clean, changes[0].other, places, self.query)
        return self._prediction(stream)

    def _value(self, streams: Float[Tensor, "layer_plus_one d_model"]) -> float:
        return float(self.target.measure(self.exact, streams[self.target.layer]))

    def _probabilities(self, streams: Float[Tensor, "layer_plus_one d_model"]) -> Tensor:
        return self.exact.unembed(streams[-1])[0].softmax(-1)

    def _prediction(self, streams: Float[Tensor, "layer_plus_one d_model"]) -> list[Prediction]:
        return predictions(self.run, self.exact.unembed(streams[-1])[0])


def intervene(
    model: str | LanguageModel,
    dictionaries: str | Path | DictionarySet,
    prompt: str,
    changes: Sequence[str],
    target: str | None = None,
    query: int | None = None,
    catalogue: Catalogue | None = None,
    spans: Sequence[Any] | None = None,
    random_writes: int = RANDOM_WRITES,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Outcome]:
    """Hold or swap concepts on a prompt and read the prediction.

    Args:
        changes: such as `large@5=0` or `large@5->hot` (see changes.py); positions are 1-based
            without BOS.
        target, query, catalogue, spans, dtype: as in `saekit.trace`.
        random_writes: how many random writes of the same size to compare with.

    Returns:
        One outcome per change; where there are several, one more of all of them together.

    Raises:
        InputError: a change that is not understood, a position out of range, an unknown concept or
            one that is not active there (where it is active is said), a word that is not one token.
        MismatchError: dictionaries or catalogue of another model.

    Example:
        >>> dictionaries = DictionarySet.load("dictionaries/gpt2-mini")
        >>> prompt = 'The opposite of "large" is "'
        >>> (outcome,) = intervene("gpt2-mini", dictionaries, prompt, ["large@5->hot"])
        >>> outcome.before[0].token, outcome.after[0].token
        ('small', 'cold')
    """
    parsed = [parse_change(change) for change in changes]
    if random_writes < 0:
        raise InputError("random_writes must be at least 0.")
    run = PromptRun.of(model, dictionaries, prompt, catalogue, spans, dtype)
    query = run.query(query)
    resolver = Resolver(run, query)
    resolved = [resolver.resolve(change) for change in parsed]
    one = Intervener(run, TargetChooser(run, query).choose(target))
    groups = [[change] for change in resolved] + ([resolved] if len(resolved) > 1 else [])
    return [one.outcome(group, random_writes, seed) for group in groups]
