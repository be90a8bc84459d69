"""Bundled files are found beside the package or inside it."""

import pytest

from saekit import bundled
from saekit.errors import InputError


def test_checkout_and_wheel_places(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "_PACKAGE", tmp_path / "saekit")
    inside = tmp_path / "saekit" / "bundled" / "app" / "viewer.py"
    inside.parent.mkdir(parents=True)
    inside.touch()
    assert bundled.bundled("app/viewer.py") == inside
    beside = tmp_path / "app" / "viewer.py"
    beside.parent.mkdir()
    beside.touch()
    assert bundled.bundled("app/viewer.py") == beside
    with pytest.raises(InputError, match="did not come with this installation"):
        bundled.bundled("dictionaries/nothing")
