"""The atlas as a file whose suffix decides the form, or a folder with all of them.  No torch."""

from collections.abc import Callable
from pathlib import Path

from saekit.errors import InputError
from saekit.files import ensure_writable, write_bytes, write_text
from saekit.heads.scores import HeadScores

SUFFIXES = (".json", ".csv", ".svg", ".png", ".html")
STEM = "heads"


def _write(scores: HeadScores, path: Path, per_pair: bool) -> None:
    from saekit.report.heads import chart

    suffix = path.suffix.lower()
    writers: dict[str, Callable[[], None]] = {
        ".json": lambda: scores.save(path, per_pair),
        ".csv": lambda: write_text(path, scores.to_csv()),
        ".svg": lambda: write_text(path, chart.atlas_svg(scores)),
        ".png": lambda: write_bytes(path, chart.atlas_png(scores)),
        ".html": lambda: write_text(path, chart.atlas_html(scores)),
    }
    writers[suffix]()


def check_out(out: str | Path) -> list[Path]:
    """The files that `out` stands for, after proving that they can be written.

    Args:
        out: a file with one of the suffixes, or a folder (a name without a suffix).

    Raises:
        InputError: another suffix, or the folder cannot be written.
    """
    out = Path(out)
    if out.is_dir() or not out.suffix:
        folder = ensure_writable(out)
        return [folder / f"{STEM}{suffix}" for suffix in SUFFIXES]
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{out} ends in {out.suffix}; name a folder or a file ending in {', '.join(SUFFIXES)}."
        )
    ensure_writable(out.parent)
    return [out]


def write_atlas(scores: HeadScores, out: str | Path, per_pair: bool = False) -> list[Path]:
    """Write the atlas; returns the files.

    Args:
        scores: from `score_heads`.
        out: see `check_out`.
        per_pair: whether JSON files say which pairs each head maps.

    Raises:
        InputError: another suffix, or the place cannot be written.
    """
    paths = check_out(out)
    for path in paths:
        _write(scores, path, per_pair)
    return paths
