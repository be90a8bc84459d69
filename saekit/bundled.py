"""What comes with saekit: its example, and its files beside the package or inside it in a wheel."""

from pathlib import Path

from saekit.errors import InputError

_PACKAGE = Path(__file__).parent
DEFAULT_DICTIONARIES = "dictionaries/gpt2-mini"
SEED_PROMPT = 'The opposite of "large" is "'  # the example everything is shown on


def bundled(relative: str) -> Path:
    """Path of a bundled file or folder such as `dictionaries/gpt2-mini` or `app/viewer.py`.

    Raises:
        InputError: it is in neither place (an incomplete installation).
    """
    for root in (_PACKAGE.parent, _PACKAGE / "bundled"):
        if (root / relative).exists():
            return root / relative
    raise InputError(f"{relative} did not come with this installation; reinstall saekit.")
