"""A wheel carries the viewer and the bundled model, and works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # compresses the bundled dictionaries


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def tracked(folder: str) -> set[str]:
    """Files of a folder that belong to the project (no caches, no unfinished training)."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in paths}
    return {n for n in names if "__pycache__" not in n and "/training/" not in n}


def test_what_is_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert tracked("saekit") <= names
    for folder in ("app", "dictionaries"):
        assert {f"saekit/bundled/{name}" for name in tracked(folder)} <= names
    assert "saekit/data/antonyms.tsv" in names
    assert not any(name.startswith(("tests/", "app/")) or "__pycache__" in name for name in names)
    metadata = next(name for name in names if name.endswith("entry_points.txt"))
    assert "saekit = saekit.cli:main" in zipfile.ZipFile(wheel).read(metadata).decode()


def test_it_works_outside_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import saekit, saekit.bundled, saekit.text.corpora, saekit.text.relational as r\n"
        "print(saekit.__file__, saekit.bundled.bundled('app/viewer.py'), sep='\\n')\n"
        "assert r.opposite_pairs() and saekit.text.corpora.prose()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = [Path(line).relative_to(tmp_path / "site") for line in result.stdout.split()]
    assert found == [Path("saekit/__init__.py"), Path("saekit/bundled/app/viewer.py")]
    help_text = subprocess.run(
        [sys.executable, "-P", "-m", "saekit", "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "trace" in help_text.stdout
