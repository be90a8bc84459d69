"""What a notebook shows of an object: its picture, which `saekit.report` draws."""

from importlib import import_module


class Pictured:
    """Gives `_repr_html_`, which notebooks ask for.

    The drawing is loaded by name when it is asked for: what is computed does not depend on how it
    is shown, and `saekit.report` imports from all of it.
    """

    def _repr_html_(self) -> str:
        return import_module("saekit.report.picture").picture(self)
