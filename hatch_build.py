"""Puts app/ and dictionaries/ into the wheel as saekit/bundled/ (see saekit/bundled.py)."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LEFT_OUT = ("__pycache__", "training")  # training: checkpoints of a run that is not finished


class BundleHook(BuildHookInterface):
    """A wheel has no checkout beside the package; an editable install has, and gets nothing."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        for folder in ("app", "dictionaries"):
            for path in sorted((root / folder).rglob("*")):
                relative = path.relative_to(root)
                if path.is_file() and not set(LEFT_OUT) & set(relative.parts):
                    build_data["force_include"][str(path)] = f"saekit/bundled/{relative.as_posix()}"
