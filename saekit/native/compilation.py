"""C++ files compiled on first use for this processor.

What was compiled is kept in a folder of the user's cache that nobody else can read or write, under
the hash of its source, of the compiler, its version, its flags and the processor.
"""

import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
HEADERS = sorted(FOLDER.glob("*.h"))  # that all files may include
COMPILE_SECONDS = 180.0  # twenty times what a file takes
_VERSION_SECONDS = 20.0

# torch has loaded an OpenMP runtime of the same name already, so both share one thread pool
_COMMON = "-O3 -std=c++17 -fopenmp -fno-math-errno -fno-trapping-math -shared -fPIC".split()
_PROCESSOR = {
    "x86_64": ["-march=native", "-mprefer-vector-width=512"],
    "amd64": ["-march=native", "-mprefer-vector-width=512"],
    "aarch64": ["-mcpu=native"],
    "arm64": ["-mcpu=native"],
}


class CompileError(Exception):
    """Why there is no compiled library, in words for people."""


def flags() -> list[str]:
    """Of the compiler, for this kind of processor."""
    return [*_COMMON, *_PROCESSOR.get(platform.machine().lower(), [])]


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _run(command: list[str], seconds: float) -> str:
    """What a command prints; its children end with it."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise CompileError(f"{command[0]} took more than {seconds:g} s") from None
        finally:
            if process.poll() is None:  # too slow, or interrupted
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise CompileError(f"{command[0]} failed: {output.strip() or process.returncode}")
    return output


@cache
def compiler() -> tuple[str, str]:
    """The path of the C++ compiler and the first line of its version.

    Raises:
        CompileError: there is none, or it does not run.
    """
    path = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if path is None:
        raise CompileError("no C++ compiler (g++) was found")
    try:
        return path, _run([path, "--version"], _VERSION_SECONDS).partition("\n")[0]
    except OSError as error:
        raise CompileError(f"{path} does not run: {error}") from None


def _is_private(folder: Path) -> bool:
    """Whether this is a folder of the user that nobody else can enter."""
    found = folder.lstat()
    alone = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    return alone and found.st_uid == os.getuid() and os.access(folder, os.W_OK)


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="saekit-")  # mode 0700; gone with this process


def cache_folder() -> Path:
    """Where libraries are kept: in the user's cache, or in a folder of this process alone."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "saekit" / "native"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_private(folder):
            return folder
    except (OSError, RuntimeError):  # Path.home: no HOME, and no such user
        pass
    return Path(_temporary_folder().name)


def compiled(name: str) -> Path:
    """The shared library of `name`.cpp.

    Raises:
        CompileError: with the reason.
    """
    path, version = compiler()
    source = FOLDER / f"{name}.cpp"
    texts = [file.read_text(encoding="utf-8") for file in (source, *HEADERS)]
    key = "\0".join([*texts, path, version, *flags(), _processor()])
    file = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        target = cache_folder() / file
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                built = Path(folder) / file
                command = [path, *flags(), f"-I{FOLDER}", str(source), "-o", str(built)]
                _run(command, COMPILE_SECONDS)
                os.replace(built, target)  # two processes may build at the same time
    except OSError as error:
        raise CompileError(f"{name}.cpp cannot be compiled: {error}") from None
    return target
