"""A small atlas with every part filled, for the tests of its file forms."""

import numpy as np

from saekit.heads.classes import HeadClass, HeadClasses
from saekit.heads.document_parts import CausalCheck, CausalRow, SalientHead, SalientRow
from saekit.heads.grids import Dynamic
from saekit.heads.scores import HeadScores


def grid(*values):
    """2 layers x 3 heads."""
    return np.array(values, dtype=np.float64).reshape(2, 3)


def atlas(**changes) -> HeadScores:
    """L1-H2 copies Mary and John, L0-H1 suppresses John."""
    hits, lowered = np.zeros((2, 2, 3, 2), dtype=np.float32)
    hits[1, 2], lowered[0, 1] = (1, 1), (0, 1)
    values = {
        "model": "some/folder/tiny", "fingerprint": "0" * 64, "relation": "name_copying",
        "category": "algorithmic", "source": "made for the test", "k": 1, "n_listed": 5,
        "n_pairs": 2, "n_targets": 2,
        "scores": grid(0, 0, 0.25, 0, 0.125, 1), "suppression": grid(0, 0.5, 0, 0, 0, 0),
        "null_scores": grid(0, 0, 0.5, 0, 0.0625, 0.5), "null_suppression": grid(*[0] * 6),
        "constant": 0.5, "chance": 0.001, "permutations": 200, "seed": 0, "silent": ["L0-H0"],
        "pairs": [("Mary", "Mary"), ("John", "John")], "hits": hits, "lowered": lowered,
        "classes": HeadClasses(
            "Measured here", True, "by hand",
            [HeadClass("Name Mover", "scores", "x", [(1, 2)]),
             HeadClass("Backup", "scores", "dot", [(1, 1)]),
             HeadClass("Negative", "suppression", "x", [(0, 1)])],
            {"induction": [(0, 0)]}, [{"head": "L1-H2"}], {"stories": 3},
        ),
        "dynamic": Dynamic(
            ["No X means no"], 2, grid(*[0.5] * 6), grid(*[0.25] * 6), grid(*[0] * 6),
            grid(*[1] * 6), {"forced": 0.9, "natural": None},
        ),
        "causal": CausalCheck(
            "accuracy", 4, 1.0, 0, [CausalRow(1, ["L1-H2"], 0.25, 0.9, [0.5, 1.0], 20)]
        ),
        "salient": [
            SalientHead("L1-H2", "raises", {"same token": 1.0},
                        [SalientRow(" Mary", [" Mary", "x"], 1.5, "same token")])
        ],
        "notes": ["a note"],
    }  # fmt: skip
    return HeadScores(**{**values, **changes})
