"""What a head does without being asked: the strongest (input, output) tokens of its OV map.

Every token t of the vocabulary is an input; its logits L_t = s_t W_V W_O W_U are those of the
static score.  An input's strength is how far its highest logit is above the mean of its row (what
a head adds to all outputs alike changes no prediction).  The strongest inputs are listed with the
outputs they raise (or lower) most, grouped by how input and first output are related.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from saekit.coordinates import Head, head_name
from saekit.heads.document_parts import SalientHead, SalientRow
from saekit.heads.ranking import BUDGET, extremes
from saekit.heads.weights import head_input
from saekit.model.exact import ExactModel
from saekit.model.loading import LanguageModel

N_INPUTS = 40
N_OUTPUTS = 5
STEM = 3  # letters that two forms of a word have in common at least
KINDS = ("same token", "same word", "same beginning", "other")


def kind_of(source: str, output: str) -> str:
    """How an input token and an output token are related.

    "same word": equal but for case and spaces; "same beginning": the shorter word's letters, at
    least three and all but two, begin both.
    """
    if source == output:
        return "same token"
    one, two = source.strip().lower(), output.strip().lower()
    if one == two and one:
        return "same word"
    n = max(STEM, min(len(one), len(two)) - 2)
    return "same beginning" if one[:n] == two[:n] and min(len(one), len(two)) >= n else "other"


@torch.no_grad()
def strongest(
    exact: ExactModel, head: Head, inputs: Float[Tensor, "token d_model"], lowers: bool
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, "n outputs"]]:
    """(strength, input ids, output ids) of the strongest inputs of a head.

    Args:
        inputs: what the head is given for every token of the vocabulary.
    """
    layer, h = head
    block = exact.blocks[layer]
    W_OU = block.W_O[h] @ exact.W_U
    strengths, outputs = [], []
    for part in inputs.split(max(1, BUDGET // W_OU.shape[1])):
        logits = part @ block.W_V[h] @ W_OU
        values, ids = extremes(logits, min(N_OUTPUTS, logits.shape[1]), largest=not lowers)
        strengths.append((values[:, 0] - logits.mean(1)).abs())
        outputs.append(ids)
    strength, ids = torch.cat(strengths), torch.cat(outputs)
    best = strength.topk(min(N_INPUTS, len(strength)))
    return best.values, best.indices, ids[best.indices]


def salient_operations(
    model: LanguageModel, exact: ExactModel, heads: Sequence[tuple[Head, bool]]
) -> list[SalientHead]:
    """The strongest operations of some heads.

    Args:
        heads: (head, lowers): whether outputs are those that the head lowers most.

    Returns:
        Per entry its strongest inputs with their outputs, and the shares of the kinds of relation.
    """
    everything = torch.arange(exact.W_E.shape[0], device=exact.W_E.device)
    read = {at: head_input(exact, everything, at) for at in {min(h[0], 1) for h, _ in heads}}
    found = []
    for head, lowers in tqdm(heads, desc="salient operations", unit=" heads", delay=2):
        strength, inputs, outputs = strongest(exact, head, read[min(head[0], 1)], lowers)
        rows = []
        for value, token, answers in zip(
            strength.tolist(), inputs.tolist(), outputs.tolist(), strict=True
        ):
            source, words = model.vocabulary[token], model.token_strings(answers)
            rows.append(
                SalientRow(
                    input=source,
                    outputs=words,
                    strength=round(value, 4),
                    kind=kind_of(source, words[0]) if value > 0 else "other",
                )
            )
        rows.sort(key=lambda row: KINDS.index(row.kind))  # stable: by strength within a kind
        kinds = {
            kind: round(sum(row.kind == kind for row in rows) / len(rows), 4) for kind in KINDS
        }
        side = "lowers" if lowers else "raises"
        found.append(SalientHead(head_name(*head), side, kinds, rows))
    return found
