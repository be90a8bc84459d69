"""Files of prompts: one a line, or TOML with a template and word lists.

    template = 'The opposite of "{word}" is "'
    word = ["large", "hot", "early"]

Several placeholders give all combinations; these share words, so that intervals over them, which
draw prompts one by one, are too narrow.  Importing this module costs no torch.
"""

import string
import tomllib
from itertools import product
from math import prod
from pathlib import Path

from saekit.errors import InputError

MAX_VARIANTS = 1000  # combinations of long lists grow fast; this many take minutes


def read_variants(path: str | Path) -> list[str]:
    """The prompts of a file of variants (module docstring), doubles left out.

    Raises:
        InputError: no such file, no prompt in it, a template that does not fit its lists, or more
            than 1,000 combinations.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"The file of variants {path} cannot be read: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"The file of variants {path} is not text in UTF-8.") from error
    if path.suffix == ".toml":
        prompts = _filled(text, path)
    else:
        prompts = [line for line in text.splitlines() if line.strip()]
    prompts = list(dict.fromkeys(prompts))
    if not prompts:
        raise InputError(f"{path} holds no prompt: write one per line.")
    if len(prompts) > MAX_VARIANTS:
        raise InputError(
            f"{path} gives {len(prompts)} prompts; at most {MAX_VARIANTS} are traced: shorten it."
        )
    return prompts


def _filled(text: str, path: Path) -> list[str]:
    """All combinations of a template's words."""
    try:
        content = tomllib.loads(text)
        template = content.pop("template", None)
        fields = [
            field for field in string.Formatter().parse(template or "") if field[1] is not None
        ]
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no template: {error}.") from error
    names = [str(name) for _, name, _, _ in fields]
    plain = all(name.isidentifier() for name in names)
    if not names or not plain or any(spec or conversion for _, _, spec, conversion in fields):
        raise InputError(f'{path} needs a line such as template = \'The "{{word}}" is "\'.')
    if set(names) != set(content):
        raise InputError(
            f"{path}: the template has {', '.join(sorted(set(names)))}, the lists are "
            f"{', '.join(sorted(content)) or 'missing'}; they must be the same."
        )
    for name, words in content.items():
        if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
            raise InputError(f"{path}: {name} must be a list of words in quotes.")
    total = prod(len(words) for words in content.values())
    if total > MAX_VARIANTS:
        raise InputError(
            f"{path} gives {total} prompts; at most {MAX_VARIANTS} are traced: shorten the lists."
        )
    return [
        template.format(**dict(zip(content, words, strict=True)))
        for words in product(*content.values())
    ]
