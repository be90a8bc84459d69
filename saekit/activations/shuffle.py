"""Shuffling: batches of tokens drawn from a buffer, in the same order for every layer.

Time goes in rounds.  A round serves `round_tokens` tokens; the places they leave are refilled with
the next ones of the source.  At its arrival a token is given, at random, the round in which it
will be served: this one or one of the `GROUPS - 1` after it, the same number of tokens each.  So
every round mixes the same number of tokens of the last `GROUPS` refills, each token is served
exactly once, and none waits longer than `GROUPS` rounds.

Which token is served when depends only on the seed and on the token's number in the source.  A
run is therefore taken up by reading the last `GROUPS` refills again; nothing of the buffer has to
be stored.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.activations.placing import place_rows
from saekit.activations.sources import ActivationSource
from saekit.errors import TrainingError

GROUPS = 4  # tokens mix over 4 refills of 0.4 buffers; more mix hardly further and resume slower
_SCHEDULE, _ORDER = 0, 1  # what a random stream is for


def group_sizes(round_tokens: int) -> Int[np.ndarray, " group"]:
    """How many tokens of a refill are served 0, 1, ... `GROUPS - 1` rounds later."""
    edges = np.arange(GROUPS + 1) * round_tokens // GROUPS
    return np.diff(edges)


def _sizes(batch_tokens: int, buffer_tokens: int) -> tuple[int, int]:
    """Tokens served per round, and tokens held."""
    batches = max(1, 2 * buffer_tokens // ((GROUPS + 1) * batch_tokens))
    groups = group_sizes(batches * batch_tokens)
    return batches * batch_tokens, int((groups * np.arange(1, GROUPS + 1)).sum())


class ShuffleBuffer:
    """Batches of shuffled tokens from a source.

    Attributes:
        layers: of the source.
        buffer: activations [layer, place, d_model], preallocated, refilled in place.
        numbers: for each place, its token's number in the source (from 0); -1 before the first.
        round_tokens: tokens served (and then replaced) per round.
        capacity: tokens held after a refill, at most the `buffer_tokens` asked for (but at least
            two and a half batches).
        round: the current round (from 0); -1 before the first fill.
        batch: batches of this round already served.
    """

    def __init__(
        self,
        source: ActivationSource,
        batch_tokens: int,
        buffer_tokens: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        tokens: int | None = None,
    ):
        """
        Args:
            source: where activations come from.
            batch_tokens: tokens per batch.
            buffer_tokens: tokens to hold in memory, each of `layer * d_model` values.
            seed: decides the order.
            dtype: how activations are held; bfloat16 takes half the memory of float32.
            tokens: how many will be served; no more are read.  None reads to the source's end.
        """
        self.source, self.layers = source, list(source.layers)
        self.batch_tokens, self.seed, self.tokens = batch_tokens, seed, tokens
        self.round_tokens, self.capacity = _sizes(batch_tokens, buffer_tokens)
        self._groups = group_sizes(self.round_tokens)
        self._first_groups = self._groups[::-1].cumsum()[::-1]  # what the first rounds need
        size = (len(self.layers), self.capacity, source.d_model)
        self.buffer = torch.empty(size, dtype=dtype, device=source.device)
        self.numbers = np.full(self.capacity, -1)
        self._due = np.full(self.capacity, -1)  # the round that serves each place
        self.round, self.batch = -1, 0
        self._order = torch.empty(0, dtype=torch.long)
        self._pass: Tensor | None = None  # with tokens that are not in the buffer yet
        self._offset = 0  # of its first such token
        self._pass_position = source.position()
        self._starts: deque[list[int]] = deque(maxlen=GROUPS)  # offset and position per refill

    def _random(self, round: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**64, round, purpose])

    def _schedule(self, refill: int) -> Int[np.ndarray, " token"]:
        """The round that serves each token of a refill."""
        sizes = self._groups if refill else self._first_groups
        return self._random(refill, _SCHEDULE).permutation(
            np.repeat(np.arange(refill, refill + GROUPS), sizes)
        )

    def _first_number(self, refill: int) -> int:
        """The number of the first token of a refill."""
        return self.capacity + (refill - 1) * self.round_tokens if refill else 0

    def _read(self, refill: int, current: int) -> bool:
        """Put the tokens of a refill that are due in round `current` or later into free places.

        Returns:
            Whether there were as many.
        """
        self._starts.append([self._offset, *self._pass_position])
        due, done = self._schedule(refill), 0
        number = self._first_number(refill)
        asked = len(due) if self.tokens is None else min(len(due), self.tokens - number)
        free = np.flatnonzero(self._due < current)
        total = torch.zeros(len(self.layers), device=self.source.device)
        while done < asked:
            if self._pass is None or self._offset == self._pass.shape[1]:
                self._pass, self._offset = None, 0
                self._pass_position = self.source.position()
                self._pass = self.source.next_pass()
                if self._pass is None:
                    break
            taken = min(self._pass.shape[1] - self._offset, asked - done)
            wanted = np.flatnonzero(due[done : done + taken] >= current)
            places, free = free[: len(wanted)], free[len(wanted) :]
            self._due[places] = due[done + wanted]
            self.numbers[places] = number + done + wanted
            self._store(self._pass[:, self._offset : self._offset + taken], wanted, places, total)
            self._offset += taken
            done += taken
        for slot in (~torch.isfinite(total)).nonzero().flatten().tolist()[:1]:
            raise TrainingError(
                f"The activations of layer {self.layers[slot]} are not finite in tokens {number} "
                f"to {number + done - 1}; earlier checkpoints are intact."
            )
        return done == len(due)

    def _store(
        self,
        activations: Float[Tensor, "layer token d_model"],
        wanted: Int[np.ndarray, " wanted"],
        places: Int[np.ndarray, " wanted"],
        total: Float[Tensor, " layer"],
    ) -> None:
        device = self.buffer.device
        rows, targets = (torch.from_numpy(ints).to(device) for ints in (wanted, places))
        for slot, stream in enumerate(activations):
            total[slot] += place_rows(stream, rows, targets, self.buffer[slot])

    def fill(self) -> None:
        """Go to the next round: replace the tokens that were served, and draw the order.

        When the source ends, or has given `tokens`, all that is left is served in one last round.

        Raises:
            InputError: the source has nothing.
            TrainingError: the source ended, or an activation is not finite.
        """
        following = self.round + 1
        whole = self._read(following, following)
        self.round, self.batch = following, 0
        self._draw(whole)

    def _draw(self, whole: bool) -> None:
        """The order of the round: by token number, then permuted, whatever places tokens have."""
        places = np.flatnonzero(self._due == self.round if whole else self._due >= self.round)
        places = places[self.numbers[places].argsort()]
        if len(places) < self.batch_tokens:
            raise TrainingError(
                f"The text ended after {self.numbers.max() + 1} tokens, before the training did; "
                "give more text, or ask for fewer tokens."
            )
        shuffled = self._random(self.round, _ORDER).permutation(places)
        if not whole:
            self._due[places] = self.round
        self._order = torch.from_numpy(shuffled).to(self.buffer.device)

    def next_batch(self) -> Int[Tensor, " token"]:
        """Buffer places of the next batch; goes to the next round when this one is served.

        Raises:
            TrainingError: the source ended, or an activation is not finite.
        """
        if self.batch >= len(self._order) // self.batch_tokens:
            self.fill()
        start = self.batch * self.batch_tokens
        self.batch += 1
        return self._order[start : start + self.batch_tokens]

    def layer(
        self, slot: int, places: Int[Tensor, " token"], out: Tensor | None = None
    ) -> Float[Tensor, "token d_model"]:
        """The activations of one layer (by its place in `layers`) at the given buffer places.

        Args:
            slot: place in `layers`.
            places: as `next_batch` gives them.
            out: where to put them, of any type; None for a new tensor of the buffer's type.
        """
        if out is None or out.dtype == self.buffer.dtype:
            return torch.index_select(self.buffer[slot], 0, places, out=out)
        return out.copy_(torch.index_select(self.buffer[slot], 0, places))

    def held(self, slot: int) -> Float[Tensor, "token d_model"]:
        """What the buffer holds of one layer now, in no particular order (for statistics)."""
        if (self.numbers >= 0).all():
            return self.buffer[slot]
        filled = torch.from_numpy(np.flatnonzero(self.numbers >= 0))
        return self.buffer[slot, filled.to(self.buffer.device)]

    def state(self) -> list[int]:
        """Integers with which `load_state` finds the next batch again."""
        start = self._starts[0] if self._starts else [0, *self._pass_position]
        return [self.round, self.batch, *start]

    def load_state(self, state: Sequence[int]) -> None:
        """Continue where a buffer with an equal source and equal settings gave its `state`.

        Runs the source over at most `GROUPS` refills (less than two buffers of tokens).

        Raises:
            InputError: the source has nothing.
            TrainingError: the source is not the same.
        """
        self.round, self.batch, offset, *position = state
        self.source.seek(position)
        self._pass_position = list(position)
        self._pass, self._offset = None, 0
        self._starts.clear()
        self._due[:] = self.numbers[:] = -1
        self._order = self._order[:0]
        if self.round < 0:
            return
        if offset:
            self._pass, self._offset = self.source.next_pass(), offset
            if self._pass is None or self._pass.shape[1] < offset:
                raise TrainingError(
                    "The text is not the one that the run to be continued had read: give the same."
                )
        whole = True
        for refill in range(max(0, self.round - GROUPS + 1), self.round + 1):
            whole = self._read(refill, self.round)
        self._draw(whole)
