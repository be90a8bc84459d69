"""The whole atlas: static scores, classes, and what is asked for beside them, in one call."""

from collections.abc import Sequence
from typing import Any

from saekit.coordinates import Head, head_name, parse_head
from saekit.errors import InputError
from saekit.heads.pairs import open_for_pairs, token_pairs
from saekit.heads.prompts.causal import causal_check
from saekit.heads.prompts.dynamic_scores import dynamic_scores
from saekit.heads.prompts.measured import measured_classes
from saekit.heads.relations import open_relation
from saekit.heads.salient import salient_operations
from saekit.heads.scores import HeadScores
from saekit.heads.static_scores import check_k, score_pairs
from saekit.model.exact import ExactModel
from saekit.model.loading import load_model

CAUSAL_HEADS = 20
SALIENT_HEADS = 3


def _salient_choice(
    scores: HeadScores, names: Sequence[str], exact: ExactModel
) -> list[tuple[Head, bool]]:
    """The named heads on both sides, or the highest of this relation on the side they act."""
    if not names:
        raised = [(head, False) for head, _ in scores.top_heads(SALIENT_HEADS)]
        return raised + [(head, True) for head, _ in scores.top_heads(1, suppression=True)]
    heads = [parse_head(name) for name in names]
    for layer, head in heads:
        if layer >= exact.n_layers or head >= exact.n_heads:
            last = head_name(exact.n_layers - 1, exact.n_heads - 1)
            raise InputError(f"There is no head {head_name(layer, head)}: the last one is {last}.")
    return [(head, lowers) for head in heads for lowers in (False, True)]


def build_atlas(
    model: Any,
    relation: Any = "name_copying",
    k: int | None = None,
    *,
    classes: bool = True,
    dynamic: bool = False,
    causal: bool = False,
    salient: Sequence[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> HeadScores:
    """`score_heads` with classes drawn over it and measurements on prompts.

    Args:
        model, relation, k: as for `score_heads`.
        classes: the published ones for GPT-2 small, measured ones for any other model; a note
            says why where there are none.
        dynamic: also what heads write on carrier prompts.
        causal: also accuracy on the relation's prompts with the highest heads removed.
        salient: heads whose OV map is listed ("L9-H9"); empty for the highest; None for no list.

    Raises:
        ModelError, InputError: as `score_heads`; there is no such head; dynamic, causal or salient
            of a model without a tokenizer.
    """
    opened = open_relation(relation)
    language_model = open_for_pairs(
        load_model(model, device=device) if isinstance(model, str) else model, opened
    )
    pairs = token_pairs(language_model, opened)
    chosen = check_k(k, opened.default_k, language_model.d_vocab)
    if language_model.tokenizer is None and (dynamic or causal or salient is not None):
        raise InputError(f"{language_model.id} has no tokenizer: open it from its folder.")
    exact = ExactModel(language_model)
    scores = score_pairs(language_model, exact, pairs, chosen, seed=seed)
    listed = _salient_choice(scores, salient, exact) if salient is not None else None
    if not classes:
        scores.classes = None
    elif scores.classes is None and language_model.tokenizer is not None:
        try:
            scores.classes = measured_classes(language_model, exact, seed=seed)
        except InputError as error:
            scores.notes.append(f"No classes are drawn: {error}")
    if dynamic:
        static = (scores.scores, scores.suppression)
        scores.dynamic = dynamic_scores(language_model, exact, pairs, chosen, static)
    if causal:
        heads = [head for head, _ in scores.top_heads(CAUSAL_HEADS)]
        scores.causal = causal_check(language_model, exact, pairs, heads, seed)
    if listed is not None:
        scores.salient = salient_operations(language_model, exact, listed)
    return scores
