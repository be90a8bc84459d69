"""The commands and the program in the README run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

from saekit.cli import build_parser, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for line in README.replace("\\\n", " ").splitlines()
    if line.startswith("    saekit ")
]
GPU = [command for command in COMMANDS if "gpt2" in command or "out/gpt2" in command]
TOUR = [command for command in COMMANDS if command not in GPU]


def test_the_tour_was_found():
    assert {command[0] for command in TOUR} == {"trace", "concepts", "query", "evaluate", "report"}
    assert {command[0] for command in GPU} == {"train", "index", "concepts", "view"}


@pytest.mark.slow
@pytest.mark.parametrize("command", TOUR, ids=" ".join)
def test_a_command_of_the_tour_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # what is shipped is found from anywhere; outputs go here
    (template,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    Path("words.toml").write_text(template, encoding="utf-8")
    fewer = ["1000" if argument == "20000" else argument for argument in command]
    assert main(fewer) == 0
    assert len(capsys.readouterr().out) > 40


@pytest.mark.slow
def test_the_shown_interventions_are_what_is_printed(capsys):
    """Up to the last digit that another processor may round differently."""
    (shown,) = re.findall(r"```\n(Change .*?)```", README, flags=re.DOTALL)
    (command,) = [c for c in TOUR if "--swap" in c]
    assert main(command) == 0
    printed = capsys.readouterr().out
    words = [line.split("(")[0].split(":")[0] for line in shown.splitlines() if line.strip()]
    for start in words:
        assert start in printed, start
    for token in ("'cold' 99.6%", "'small' 99% -> 2.1%"):
        assert token in shown and token in printed


@pytest.mark.parametrize("command", GPU, ids=" ".join)
def test_a_command_for_the_gpu_is_understood(command):
    build_parser().parse_args(command)


@pytest.mark.slow
def test_the_program_runs(monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(program, "README.md", "exec"), {})
    assert '"small" (layer 12) at position 8' in capsys.readouterr().out
