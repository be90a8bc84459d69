"""Several processes for one training: rows of text split over them, layers split over them.

Every process runs the model on its share of the text, exchanges activations so that each gets all
tokens of its own layers (all-to-all), and trains those layers on the full batches.  The stream of
tokens is the one of a single process, so the results are too, up to rounding.

    torchrun --nproc-per-node 2 -m saekit train ...
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from saekit.activations import ModelActivations
from saekit.activations.rows import Rows
from saekit.errors import SaekitError, TrainingError


@dataclass(frozen=True)
class World:
    """The processes of a training; alone, everything here is trivial."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, layers: Sequence[int]) -> list[int]:
        """The layers that this process trains: every size-th."""
        return list(layers[self.rank :: self.size])

    def owners(self, layers: Sequence[int]) -> dict[int, int]:
        """The process of each layer."""
        return {layer: place % self.size for place, layer in enumerate(layers)}

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether one process says so; all get the same answer."""
        return any(self.gather(flag))

    def check(self, error: SaekitError | None) -> None:
        """Raise the first error that any process brought, in all of them."""
        found = [(type(e), str(e)) for e in self.gather(error) if e is not None]
        if found:
            kind, message = found[0]
            raise kind(message)


def join(device: str = "cpu") -> World:
    """The world that torchrun started this process in, or a world of one.

    Raises:
        TrainingError: the processes cannot be joined.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        try:
            dist.init_process_group(backend)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"The processes cannot be joined ({error}).") from error
    return World(dist.get_rank(), dist.get_world_size())


def leave(world: World) -> None:
    """End the exchange between processes, if there is one."""
    if world.size > 1:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """`cuda` becomes this process's own GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


class SharedActivations:
    """The source of one process among several: all tokens of its own layers.

    In turn each process runs one pass of rows; what `next_pass` gives are the passes of all
    processes, one after the other, so the sequence of tokens is that of a single process.

    Attributes:
        layers: those of this process.
    """

    def __init__(self, source: ModelActivations, world: World):
        self.source, self.world = source, world
        self.layers = world.own(source.layers)
        self._slots = {layer: slot for slot, layer in enumerate(source.layers)}

    @property
    def d_model(self) -> int:
        return self.source.d_model

    @property
    def device(self) -> torch.device:
        return self.source.device

    def position(self) -> list[int]:
        return self.source.position()

    def seek(self, position: Sequence[int]) -> None:
        self.source.seek(position)

    def next_pass(self) -> Float[Tensor, "layer token d_model"] | None:
        """See `ActivationSource.next_pass`.

        Raises:
            TrainingError: another process has died.
        """
        passes = [self.source.next_rows() for _ in range(self.world.size)]
        mine = self._run(passes[self.world.rank])
        counts = [self._count(rows) for rows in passes]
        if not sum(counts):
            return None
        parts = [
            mine[[self._slots[layer] for layer in World(rank, self.world.size).own(self._all)]]
            for rank in range(self.world.size)
        ]
        received = [mine.new_empty(len(self.layers), n, self.d_model) for n in counts]
        try:
            _all_to_all(received, parts, self.world)
        except RuntimeError as error:
            raise TrainingError(
                f"Another process of this training has ended ({_short(error)}); its checkpoint is "
                "intact, continue with --resume."
            ) from error
        return torch.cat(received, dim=1)

    @property
    def _all(self) -> list[int]:
        return list(self._slots)

    def _run(self, rows: Rows | None) -> Float[Tensor, "layer token d_model"]:
        if rows is None:
            shape = len(self._slots), 0, self.d_model
            return torch.empty(shape, dtype=self.source.dtype, device=self.device)
        return self.source.run(rows)

    def _count(self, rows: Rows | None) -> int:
        return 0 if rows is None else int((rows.ids != self.source.model.bos).sum())


def _all_to_all(received: list[Tensor], parts: list[Tensor], world: World) -> None:
    """parts[r] goes to rank r; received[r] comes from rank r."""
    if dist.get_backend() == "nccl":
        dist.all_to_all(received, [part.contiguous() for part in parts])
        return
    # gloo has no all-to-all of unequal lists: send and receive in pairs
    waiting = []
    for rank in range(world.size):
        if rank == world.rank:
            received[rank].copy_(parts[rank])
        else:
            waiting.append(dist.isend(parts[rank].contiguous(), rank))
            waiting.append(dist.irecv(received[rank], rank))
    for work in waiting:
        work.wait()


def _short(error: RuntimeError) -> str:
    return str(error).splitlines()[0][:120]
