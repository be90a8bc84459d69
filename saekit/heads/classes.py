"""Classes of heads that are drawn over the atlas, and the published ones of GPT-2 small.  No torch.

A class is a name, its heads, the panel it belongs to and its mark (x or dot).  The published
classes are drawn for one model only; which model that is, is settled by `is_gpt2_small`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from saekit.coordinates import Head, head_name

PANELS = ("scores", "suppression")
MARKS = ("x", "dot")

# Wang et al. 2022; the order of the name movers is the paper's order of importance.
IOI_TITLE = "'Interp. in the Wild' classifications"
IOI_CITATION = (
    "Wang, Variengien, Conmy, Shlegeris, Steinhardt 2022, Interpretability in the Wild: a Circuit "
    "for Indirect Object Identification in GPT-2 small, arXiv 2211.00593"
)
IOI_NAME_MOVERS: tuple[Head, ...] = ((9, 9), (10, 0), (9, 6))
IOI_BACKUPS: tuple[Head, ...] = (
    (10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (9, 7), (9, 0), (11, 9),
)  # fmt: skip
IOI_NEGATIVE: tuple[Head, ...] = ((10, 7), (11, 10))
IOI_OTHER: dict[str, tuple[Head, ...]] = {
    "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
    "induction": ((5, 5), (5, 9), (5, 8), (6, 9)),
    "duplicate token": ((3, 0), (0, 1), (0, 10)),
    "previous token": ((2, 2), (4, 11)),
}
# A backup head of the paper that writes against the name it attends to: a dot on the right panel.
IOI_NEGATIVE_BACKUP: tuple[Head, ...] = ((9, 7),)

GPT2_SMALL_IDS = ("gpt2", "gpt2-small", "openai-community/gpt2")
GPT2_SMALL_SHAPE = {
    "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
# The first ten values of GPT-2 small's token embedding W_E[0], as widely printed (4 decimals).
GPT2_SMALL_START = (
    -0.1101, -0.0393, 0.0331, 0.1338, -0.0485, -0.0789, -0.2398, -0.0895, 0.0253, -0.1074,
)  # fmt: skip
PRINTED = 6e-5  # half of the last printed digit, and float16's rounding of such values


@dataclass
class HeadClass:
    """One class: `heads` as (layer, head), the most important first."""

    name: str
    panel: str
    mark: str
    heads: list[Head]


@dataclass
class HeadClasses:
    """The classes of one model.

    Attributes:
        title: of the legend.
        measured: whether saekit measured them on this model (otherwise they are published).
        source: the citation, or how they were measured.
        drawn: classes with a mark on a panel.
        others: published classes that have nothing to do with copying.
        evidence: numbers behind each measured head.
    """

    title: str
    measured: bool
    source: str
    drawn: list[HeadClass]
    others: dict[str, list[Head]] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)

    def of(self, head: Head) -> list[str]:
        """Names of all classes of a head."""
        drawn = [c.name for c in self.drawn if head in c.heads]
        return drawn + [name for name, heads in self.others.items() if head in heads]

    def to_dict(self) -> dict[str, Any]:
        """The part "classes" of heads.json; heads are written `L9-H9`."""
        document = asdict(self)
        for row, drawn in zip(document["drawn"], self.drawn, strict=True):
            row["heads"] = [head_name(*head) for head in drawn.heads]
        document["others"] = {
            name: [head_name(*head) for head in heads] for name, heads in self.others.items()
        }
        return document


def ioi_classes() -> HeadClasses:
    """The published classes of GPT-2 small (26 heads in 7 classes)."""
    backups = [head for head in IOI_BACKUPS if head not in IOI_NEGATIVE_BACKUP]
    return HeadClasses(
        IOI_TITLE,
        False,
        IOI_CITATION,
        [
            HeadClass("Name Mover", "scores", "x", list(IOI_NAME_MOVERS)),
            HeadClass("Backup", "scores", "dot", backups),
            HeadClass("Negative Name Mover", "suppression", "x", list(IOI_NEGATIVE)),
            HeadClass("Backup (Negative)", "suppression", "dot", list(IOI_NEGATIVE_BACKUP)),
        ],
        {name: list(heads) for name, heads in IOI_OTHER.items()},
    )


def is_gpt2_small(id: str, shape: dict[str, int], start: Sequence[float]) -> bool:
    """Whether the published classes belong to a model; all three must hold.

    Args:
        id: the name it was opened by: only GPT-2 small's hub ids count, so a fine-tuned or
            sparsified copy in a folder is another model.
        shape: n_layer, n_head, n_embd, n_positions, vocab_size.
        start: first values of W_E[0], so that another model under that name is found out.
    """
    near = len(start) >= len(GPT2_SMALL_START) and all(
        abs(value - printed) <= PRINTED
        for value, printed in zip(start, GPT2_SMALL_START, strict=False)
    )
    return id in GPT2_SMALL_IDS and shape == GPT2_SMALL_SHAPE and near
