"""What gpt2-mini was made to do, measured: opposites, copies, names, brackets, loss.

From a model to a table of figures.  Every answer is the most probable next token of the whole
vocabulary; prompts come from the generator, so each share is over a stated number of prompts.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.bundled import SEED_PROMPT
from saekit.model.loading import LanguageModel
from saekit.text import relational
from saekit.text.packing import pack

N_SAMPLED = 400  # prompts of the sampled behaviours: a share of 0.95 is known to about 0.01


@torch.no_grad()
def next_token_logits(
    model: LanguageModel, prompts: Sequence[str], batch: int = 64
) -> Float[Tensor, "prompt d_vocab"]:
    """Logits after the last token of each prompt (prompts are padded on the right)."""
    rows = [model.prompt(prompt) for prompt in prompts]
    results = []
    hf: Any = model.hf
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        last = torch.tensor([len(row) - 1 for row in part], device=ids.device)
        hidden = hf.base_model(ids).last_hidden_state
        logits = hf.get_output_embeddings()(hidden[torch.arange(len(part)), last])
        results.append(logits.float().cpu())
    return torch.cat(results)


def answers(model: LanguageModel, prompts: Sequence[str]) -> list[str]:
    """The most probable next token of each prompt, as text."""
    return model.token_strings(next_token_logits(model, prompts).argmax(-1).tolist())


def _share(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))


def _is_opposite(word: str, answer: str) -> bool:
    return answer.strip() in relational.opposites()[word]


@torch.no_grad()
def loss_per_token(
    model: LanguageModel, documents: Iterable[str], tokens: int = 100_000, context: int = 128
) -> float:
    """Mean cross-entropy in nats of the first `tokens` tokens; predictions of BOS not counted."""
    context = min(context, model.n_ctx)
    rows: list[Int[np.ndarray, " context"]] = []
    for row in pack(documents, model.encode_batch, context, model.bos, model.prepend_bos):
        rows.append(row)
        if len(rows) * context >= tokens:
            break
    total = count = 0.0
    for start in range(0, len(rows), 32):
        ids = torch.from_numpy(np.stack(rows[start : start + 32])).long().to(model.device)
        logits = model.hf(ids[:, :-1]).logits.float().flatten(0, 1)
        target = ids[:, 1:].flatten()
        losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        keep = target != model.bos
        total += losses[keep].sum().item()
        count += keep.sum().item()
    return total / count


def measure_behaviours(model: LanguageModel, seed: int = 20_261) -> dict[str, float | int]:
    """The figures of the model's manifest, except the loss on a corpus.

    Returns:
        `seed_tokens`, `seed_probability`; shares `opposites` (150 pairs both ways in the seed
        form), `opposites_held_out` (pair and form never trained together), `copies` and
        `copies_answered_by_opposite` (`The word "X" is "`), `names_held_out`, `brackets`; the
        number of prompts behind each as `n_...`.
    """
    rng = random.Random(seed)
    words, _ = relational.relation_words()
    pairs = [(word, words[i ^ 1]) for i, word in enumerate(words)]
    seed_form = [
        relational.relation_sentence("opposite", word, answer, relational.SEED_FORM)
        for word, answer in pairs
    ]
    held_out = [
        relational.relation_sentence("opposite", word, answer, form, rng)
        for word, answer in pairs
        for form in relational.FORMS
        if relational.held_out_form(word, answer, form)
    ]
    copies = [
        relational.relation_sentence("copy", word, word, relational.SEED_FORM) for word in words
    ]
    names = [relational.sentence("names", rng, held_out=True) for _ in range(N_SAMPLED)]
    brackets = [relational.sentence("brackets", rng) for _ in range(N_SAMPLED)]
    given = {
        name: answers(model, [s.prompt for s in sentences])
        for name, sentences in (
            ("opposites", seed_form),
            ("held_out", held_out),
            ("copies", copies),
            ("names", names),
            ("brackets", brackets),
        )
    }
    copy_pairs = list(zip(copies, given["copies"], strict=True))
    seed_ids = model.prompt(SEED_PROMPT)
    return {
        "seed_tokens": len(model.tokens(SEED_PROMPT)),
        "seed_probability": model.probabilities(seed_ids)[model.tokens("small")[0]].item(),
        "opposites": _share(
            _is_opposite(s.words[0], a) for s, a in zip(seed_form, given["opposites"], strict=True)
        ),
        "n_opposites": len(seed_form),
        "opposites_held_out": _share(
            _is_opposite(s.words[0], a) for s, a in zip(held_out, given["held_out"], strict=True)
        ),
        "n_opposites_held_out": len(held_out),
        "copies": _share(a.strip() == s.words[0] for s, a in copy_pairs),
        "copies_answered_by_opposite": _share(_is_opposite(s.words[0], a) for s, a in copy_pairs),
        "n_copies": len(copies),
        "names_held_out": _share(a == s.answer for s, a in zip(names, given["names"], strict=True)),
        "n_names_held_out": len(names),
        "brackets": _share(
            a.strip().startswith(s.answer.strip())
            for s, a in zip(brackets, given["brackets"], strict=True)
        ),
        "n_brackets": len(brackets),
    }
