"""Where compiled libraries are kept, by which compiler, and what happens without either.

Mutations tried, each fails a test here: the version left out of the key; the group not killed; the
mode of the folder not looked at; flags of x86 everywhere.
"""

import os
import stat
import time
from pathlib import Path

import pytest

from saekit.native import compilation
from saekit.native.compilation import CompileError, cache_folder, compiled, compiler, flags

COPY = 'for last; do :; done; echo library > "$last"'  # the last argument is the output


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a shell script the compiler; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "compiler"

    def write(build: str, version: str = "fake 1.0") -> None:
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version}"; exit; fi\n{build}\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        compiler.cache_clear()

    yield write
    compiler.cache_clear()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_library_is_compiled_once_into_a_private_folder(fake, tmp_path):
    fake(f"{COPY}; echo . >> {tmp_path}/runs")
    first = compiled("placing")
    assert compiled("placing") == first
    assert first.read_text() == "library\n" and first.name.startswith("placing-")
    assert (tmp_path / "runs").read_text() == ".\n"
    assert first.parent == tmp_path / "cache" / "saekit" / "native" and mode(first.parent) == 0o700
    assert list(first.parent.iterdir()) == [first]


def test_another_version_of_the_compiler_compiles_anew(fake):
    fake(COPY)
    first = compiled("placing")
    fake(COPY, version="fake 1.1")
    assert compiled("placing") != first


def test_a_slow_compiler_is_ended_with_its_children(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(compilation, "COMPILE_SECONDS", 0.5)
    fake(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(CompileError, match=r"took more than 0\.5 s"):
        compiled("placing")
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child of the compiler goes on")


def test_what_the_compiler_says_is_the_reason(fake):
    fake("echo 'no such thing' >&2; exit 3")
    with pytest.raises(CompileError, match="failed: no such thing"):
        compiled("placing")
    assert list(cache_folder().iterdir()) == []


def test_a_compiler_that_does_not_run(fake, tmp_path):
    fake(COPY)
    (tmp_path / "compiler").write_text("#!/no/such/shell\n")
    with pytest.raises(CompileError, match="does not run"):
        compiler()


@pytest.mark.parametrize("others", [0o770, 0o707, 0o755])
def test_a_folder_that_others_can_enter_is_not_used(monkeypatch, tmp_path, others):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "saekit" / "native"
    folder.mkdir(parents=True)
    folder.chmod(others)
    assert cache_folder() != folder and mode(cache_folder()) == 0o700
    folder.chmod(0o700)
    assert cache_folder() == folder


def test_a_folder_of_somebody_else_or_a_link_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder()
    assert folder == tmp_path / "saekit" / "native"
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        assert cache_folder() != folder
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert cache_folder() != folder


def test_without_a_home_or_with_one_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    assert mode(cache_folder()) == 0o700 and tmp_path not in cache_folder().parents

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert mode(cache_folder()) == 0o700
    assert cache_folder() == cache_folder()  # compiled once in a process, too


@pytest.mark.parametrize(
    "machine, own",
    [
        ("x86_64", ["-march=native", "-mprefer-vector-width=512"]),
        ("aarch64", ["-mcpu=native"]),
        ("riscv64", []),
    ],
)
def test_flags_of_other_processors(monkeypatch, machine, own):
    monkeypatch.setattr(compilation.platform, "machine", lambda: machine)
    assert [flag for flag in flags() if flag.startswith("-m")] == own
