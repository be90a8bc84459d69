"""The errors people see: one sentence that says what happened, the value, and what to do.

The command line prints the sentence and exits with code 2; library users catch `SaekitError`.
"""


class SaekitError(Exception):
    """Base of every error that a user can cause or must act on."""


class InputError(SaekitError):
    """What the user gave (prompt, token, position, file, option) cannot be used."""


class ModelError(SaekitError):
    """A model cannot be loaded, or is not a GPT-2."""


class FormatError(SaekitError):
    """A file is missing, truncated, of an unknown version, or not what it should be."""


class MismatchError(SaekitError):
    """Two artefacts do not belong together (a dictionary of another model, an old index)."""


class TrainingError(SaekitError):
    """A training run cannot go on; earlier checkpoints are intact."""


class Stopped(SaekitError):
    """A signal ended a run after saving what was done.

    Attributes:
        exit_code: of the command line: 128 + the signal's number.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def check_fingerprint(
    what: str, made_with: tuple[str, str], found: tuple[str, str], cure: str = ""
) -> None:
    """Refuse what was made with a model of other weights.

    Args:
        what: with its verb, such as "The stored means belong".
        made_with, found: (name, fingerprint) of its model, and of the one it is used with.
        cure: what to do, a sentence.

    Raises:
        MismatchError: with both fingerprints.
    """
    if made_with[1] != found[1]:
        raise MismatchError(
            f'{what} to model "{made_with[0]}" with fingerprint {made_with[1]}; {found[0]} has '
            f"{found[1]}. {cure}".rstrip()
        )
