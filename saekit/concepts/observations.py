"""One streaming pass over held-out text: what every dictionary does at every position.

Activations are kept sparse: 8 bytes per active feature, about tokens * layers * k * 8 in all
(150,000 tokens, 13 layers, k = 32: 0.5 GB).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Text, check_layers, context_rows, residuals, texts_of, unembed
from saekit.activations.sparse import SparseRows
from saekit.concepts.definitions import Definition
from saekit.concepts.outputs import deviations
from saekit.concepts.sampling import Sampler, Stratum
from saekit.errors import InputError
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import DictionarySet

_PASS_TOKENS = 2048  # dense preactivations of one layer for this many tokens are held at once


@dataclass
class Observations:
    """Positions of held-out text, the first half in front, BOS left out.

    Attributes:
        ids: current token per position.
        n_first: the first half is positions 0 .. n_first - 1, the second the rest.
        weights: how many positions of the text each stands for (see `saekit.concepts.sampling`).
        probabilities: per output concept, what the model gives its tokens next.
        layers: per layer, activations as a sparse [position, feature] matrix.
        sigma: per layer, the stream's deviation (see `saekit.concepts.outputs.deviations`).
    """

    ids: Int[np.ndarray, " position"]
    n_first: int
    weights: Float[np.ndarray, " position"]
    probabilities: dict[str, Float[np.ndarray, " position"]]
    layers: dict[int, csc_array]
    sigma: dict[int, Float[np.ndarray, " position"]]

    def labels(self, definition: Definition, token_ids: list[int]) -> Bool[np.ndarray, " position"]:
        """Where a concept holds."""
        if definition.kind == "output":
            return self.probabilities[definition.name] >= definition.probability
        return np.isin(self.ids, token_ids)


class _Pass:
    """What was read of one stratum."""

    def __init__(self, layers: Sequence[int], outputs: Mapping[str, Sequence[int]]):
        self.rows = {layer: SparseRows() for layer in layers}
        self.sigma: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
        self.ids: list[np.ndarray] = []
        self.given: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
        self.positions = 0

    def add(
        self,
        model: LanguageModel,
        dictionaries: DictionarySet,
        ids: Int[Tensor, "batch pos"],
        outputs: Mapping[str, Sequence[int]],
    ) -> int:
        """Run the model and all dictionaries; returns the number of positions."""
        layers = dictionaries.layers
        wanted = check_layers(model, [*layers, model.n_layers] if outputs else layers)
        words = ids != model.bos
        streams = dict(zip(wanted, residuals(model, ids, wanted), strict=True))
        for layer in layers:
            x = streams[layer][words]
            self.rows[layer].add(*dictionaries[layer].encode_sparse(x))
            self.sigma[layer].append(deviations(model, x).cpu().numpy())
        self.ids.append(ids[words].cpu().numpy())
        if outputs:
            next_token = unembed(model, streams[model.n_layers][words]).float().softmax(-1)
            for name, members in outputs.items():
                self.given[name].append(next_token[:, list(members)].sum(-1).cpu().numpy())
        count = int(words.sum())
        self.positions += count
        return count


def _weights(model: LanguageModel, stratum: Stratum, part: _Pass) -> Float[np.ndarray, " position"]:
    """How much of the text each position of a stratum stands for."""
    length = np.array([len(text) for text in model.vocabulary])
    used = sum(int(length[ids].sum()) for ids in part.ids)
    return np.full(part.positions, stratum.met / max(used, 1))


@torch.no_grad()
def observe(
    model: LanguageModel,
    dictionaries: DictionarySet,
    documents: Text,
    outputs: Mapping[str, Sequence[int]],
    words: Sequence[str] = (),
    tokens: int = 150_000,
    context: int | None = None,
) -> Observations:
    """Read text once through the model and all dictionaries.

    Args:
        model: the model.
        dictionaries: dictionaries of that model (checked).
        documents: text that the dictionaries should not have been trained on.
        outputs: per output concept, the token ids whose next-token probability is summed.
        words: words that are read more often if they are rare, with weights that undo it.
        tokens: positions to read in both halves together; less if the text ends first.
        context: row length; by default that of the training, else 128.

    Raises:
        InputError: a half of the text has not one whole context.
        MismatchError: dictionaries of another model.
    """
    dictionaries.check_model(model)
    trained = dictionaries.manifest.get("training", {}).get("context")
    length = min(context or trained or 128, model.n_ctx)
    sampler = Sampler(texts_of(documents), words)
    passes: list[tuple[Stratum, _Pass]] = [
        (stratum, _Pass(dictionaries.layers, outputs)) for stratum in sampler.strata
    ]
    rows = {id(s): context_rows(model, sampler.read(s), length) for s in sampler.strata}
    rows_per_pass = max(1, _PASS_TOKENS // length)
    with tqdm(total=tokens, desc="reading held-out text", unit=" tokens", unit_scale=True) as bar:
        waiting = deque(passes)
        while waiting:
            stratum, part = waiting.popleft()
            enough = part.positions >= sampler.share(stratum) * tokens / 2
            batch = [] if enough else list(islice(rows[id(stratum)], rows_per_pass))
            if not batch:
                sampler.close(stratum)
                continue
            ids = torch.from_numpy(np.stack(batch)).long().to(model.device)
            bar.update(part.add(model, dictionaries, ids, outputs))
            waiting.append((stratum, part))
    n_first, n = (
        sum(part.positions for stratum, part in passes if stratum.half in halves)
        for halves in ((0,), (0, 1))
    )
    if not 0 < n_first < n:
        raise InputError(
            f"The text is too short to choose features on one half and score them on the other: "
            f"each half needs several documents and one context of {length} tokens."
        )
    matrices: dict[int, csc_array] = {}
    for layer in dictionaries.layers:  # one at a time, and its pieces are dropped: low memory
        whole = SparseRows()
        for _, part in passes:
            whole.extend(part.rows.pop(layer))
        matrices[layer] = whole.matrix(dictionaries[layer].d_sae)
    return Observations(
        ids=np.concatenate([ids for _, part in passes for ids in part.ids]),
        n_first=n_first,
        weights=np.concatenate([_weights(model, *both) for both in passes]),
        probabilities={
            name: np.concatenate([given for _, part in passes for given in part.given[name]])
            for name in outputs
        },
        layers=matrices,
        sigma={
            layer: np.concatenate([array for _, part in passes for array in part.sigma[layer]])
            for layer in dictionaries.layers
        },
    )
