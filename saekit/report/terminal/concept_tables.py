"""For the terminal: the catalogue, layer by layer with chains and nulls; concepts of a prompt."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saekit.concepts.automatic import AutomaticConcept
from saekit.concepts.catalogue import Catalogue, ClampTest, Concept, LayerScore
from saekit.coordinates import feature_name
from saekit.features.names.name_file import GOOD
from saekit.report.formatting import span_text
from saekit.report.terminal.text_table import text_table

if TYPE_CHECKING:
    from saekit.concepts.spans import ChainSpan, PromptSpan


def _span_words(concept: Concept) -> str:
    if concept.span is None:
        return "not found at any layer"
    first, last = concept.span
    words = span_text((first, last))
    outside = [str(layer) for layer in concept.found_layers if not first <= layer <= last]
    return words + (f" (also found at {', '.join(outside)})" if outside else "")


_COLUMNS = ["layer", "F1", "AUROC", "precision", "recall", "null F1", "positives", "features"]


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _score_row(score: LayerScore) -> list[str]:
    names = ", ".join(feature_name(score.layer, feature) for feature in score.features)
    return [
        str(score.layer),
        *map(_score, (score.f1, score.auroc, score.precision, score.recall, score.baseline_f1)),
        str(score.positives),
        names if score.found else "not found",
    ]


def _chain_rows(concept: Concept) -> list[str]:
    """The concept's chains in one line, and every one with two members of the concept or more."""
    own = set(concept.feature_names())
    sure = [chain for chain in concept.chains if len(own & set(chain.features)) > 1]
    if not sure:
        return []
    rows = [
        f"    layers {chain.span[0]}-{chain.span[1]}: {' '.join(chain.features)}" for chain in sure
    ]
    first, last = (f([chain.span[at] for chain in sure]) for at, f in enumerate((min, max)))
    return [f"  chains that hold several of its features: layers {first}-{last}", *rows]


def _clamp_row(clamp: ClampTest) -> str:
    best = max(range(len(clamp.rises)), key=clamp.rises.__getitem__, default=None)
    if best is None:
        return f"  clamping at layer {clamp.layer}: no feature of it was active"
    return (
        f"  clamping {feature_name(clamp.layer, clamp.features[best])} raises the logit by "
        f"{clamp.rises[best]:.2f}: more than {clamp.above[best]} of {clamp.random} random features "
        f"do (their median {clamp.random_median:.2f}, largest {clamp.random_max:.2f})"
    )


_NULL_WORDS = {
    "shifted": "with displaced activations",
    "rotated": "with rotated decoders",
    "swapped": "with decoder rows swapped between features of one frequency",
}


def _links_words(links: dict[str, Any]) -> list[str]:
    """How features were matched between layers, with the nulls."""
    if not links:
        return []
    nulls = ", ".join(
        f"{count:,} {_NULL_WORDS.get(name, name)}" for name, count in links["null_links"].items()
    )
    longest = max(map(int, links["chain_lengths"]), default=0)
    by_chance = [int(n) for ends in links.get("null_chains", {}).values() for n in ends]
    return [
        f"Features of two layers are one if they are each other's best partner, with a cosine of "
        f"at least {links['tau_cosine']:g} and a correlation of at least "
        f"{links['tau_correlation']:g}: {links['links']:,} links in {links['trials']:,} trials; "
        f"by chance {nulls}. So at most {100 * links['fdr']:.1f}% are false (wanted: "
        f"{100 * links['target_fdr']:g}%). {sum(links['chain_lengths'].values()):,} chains, the "
        f"longest over {longest} layers (by chance {max(by_chance, default=1)})."
    ]


def catalogue_table(catalogue: Catalogue) -> str:
    """Every concept with every layer, for the terminal."""
    blocks = []
    for concept in catalogue.concepts:
        shown = " ".join(f"`{token}`" for token in concept.tokens[:6])
        more = f" and {len(concept.tokens) - 6} more" if len(concept.tokens) > 6 else ""
        lines = [
            f"{concept.name} ({concept.kind}: {shown}{more}): {_span_words(concept)}",
            *text_table(_COLUMNS, [_score_row(s) for s in concept.layers], left=["features"]),
            *_chain_rows(concept),
            *map(_clamp_row, concept.clamped),
        ]
        blocks.append("\n".join(lines))
    foot = (
        f"{catalogue.tokens} positions; features were chosen on one half, scores are of the other; "
        "null F1 is the best of the same search with displaced labels."
    )
    if any(concept.kind == "contrast" for concept in catalogue.concepts):
        foot += " Contrast prompts are scored on the half of the prompts that chose nothing."
    return "\n\n".join([*blocks, foot, *_links_words(catalogue.links)])


def prompt_table(
    tokens: Sequence[str], spans: Sequence["PromptSpan"], chains: Sequence["ChainSpan"]
) -> str:
    """Concepts and their chains at each position of a prompt, for the terminal."""
    lines = []
    for position, token in enumerate(tokens, 1):
        for span in spans:
            if span.position != position:
                continue
            lines.append(
                f"{position:>3}  {token!r:14} {span.name}: {span_text((span.first, span.last))}"
                f"  ({', '.join(span.features)})"
            )
            lines += [
                f"{'':20}chain of {span_text(chain.dictionary_span)} active at "
                f"{span_text((chain.first, chain.last))}  ({', '.join(chain.features)})"
                for chain in chains
                if (chain.name, chain.position) == (span.name, position)
                and set(chain.features) & set(span.features)
            ]
    return "\n".join(lines) or "no concept is active in this prompt"


def automatic_table(concepts: Sequence[AutomaticConcept], limit: int | None = None) -> str:
    """For the terminal: one name per line with its best concept, and how they do together."""
    if not concepts:
        return "No feature has a name that is reliable on held-out text."
    of_name: dict[tuple[str, str], list[AutomaticConcept]] = defaultdict(list)
    for concept in concepts:
        of_name[concept.name, concept.kind].append(concept)
    rows = []
    for (name, kind), group in list(of_name.items())[:limit]:
        best = group[0]
        first, last = min(c.span[0] for c in group), max(c.span[1] for c in group)
        more = sum(len(c.features) for c in group) - 1
        rows.append(
            [
                f"{name} ({kind})",
                f"{first}-{last}" if last > first else f"{first}",
                *map(_score, (best.detection, best.null_detection, best.f1, best.auroc)),
                f"{best.best}{f' and {more} more' if more else ''}",
            ]
        )
    columns = ["name (kind)", "layers", "detection", "null", "F1", "AUROC", "features"]
    lines = text_table(columns, rows, left=["name (kind)", "features"], indent=0)
    if limit is not None and len(of_name) > limit:
        lines.append(f"... and {len(of_name) - limit} more names: --top, --json")
    return "\n".join([*lines, "", automatic_sentence(concepts)])


def automatic_sentence(concepts: Sequence[AutomaticConcept]) -> str:
    """How many there are and how they do on the part of the text that did not choose them."""
    nulls = [c.null_detection for c in concepts if c.null_detection is not None]
    null = f"{sum(nulls) / len(nulls):.3f}" if nulls else "n/a"
    mean = sum(c.detection for c in concepts) / max(1, len(concepts))
    good = sum(c.detection >= GOOD for c in concepts)
    different = len({(c.name, c.kind) for c in concepts})
    return (
        f"{len(concepts)} automatic concepts (chains or single features) of {different} names: "
        f"names that detect their feature with a balanced accuracy of at least {GOOD} on one part "
        f"of held-out text.  On the other part {good} of the {len(concepts)} do, mean {mean:.3f}; "
        f"with the names of other, equally frequent features the mean is {null}."
    )
