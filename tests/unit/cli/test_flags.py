"""Every field of a configuration is a flag, explained by its own text, and its value arrives."""

import argparse
from dataclasses import dataclass, fields
from typing import Literal

import pytest

from saekit.cli import build_parser
from saekit.cli.flags import add_flags, field_options, field_texts, given
from saekit.model.pretraining.recipe import PretrainConfig
from saekit.sae.training.config import TrainConfig

OWN = {"layers", "per_layer"}  # read by code of their own


@dataclass
class Base:
    size: int = 1024
    """How many
    there are."""


@dataclass
class Small(Base):
    kind: Literal["a", "b"] = "a"
    """Which one; 50% are a."""
    shares: tuple[float, ...] = (0.5, 0.25)
    """Parts."""
    fast: bool = True
    """No waiting."""
    seed: int | None = None


def actions(command: str) -> dict[str, argparse.Action]:
    sub = build_parser()._subparsers._group_actions[0].choices[command]
    return {action.dest: action for action in sub._actions if "--float32" not in
            action.option_strings}  # fmt: skip


def test_texts_are_those_below_the_fields():
    assert field_texts(Small) == {
        "size": "How many there are.", "kind": "Which one; 50% are a.", "shares": "Parts.",
        "fast": "No waiting.",
    }  # fmt: skip


def test_values_by_hand():
    parser = argparse.ArgumentParser()
    add_flags(parser, Small, skip=["seed"], other_names={"size": "--many"})
    words = "--many 3 --kind b --shares 0.1 0.2 --no-fast".split()
    assert given(parser.parse_args(words), Small) == {
        "size": 3, "kind": "b", "shares": (0.1, 0.2), "fast": False,
    }  # fmt: skip
    assert given(parser.parse_args([]), Small) == {}
    help_text = " ".join(parser.format_help().split())
    assert "How many there are (default 1,024)" in help_text
    assert "Which one; 50% are a (default a)" in help_text
    assert "Parts (default 0.5 0.25)" in help_text and "No waiting (default yes)" in help_text


@pytest.mark.parametrize(("command", "config"), [("train", TrainConfig),
                                                 ("pretrain", PretrainConfig)])  # fmt: skip
def test_every_field_is_a_flag_with_its_own_text(command, config):
    flags, texts = actions(command), field_texts(config)
    assert set(texts) == {item.name for item in fields(config)}
    for item in fields(config):
        action = flags[item.name]
        if item.name in OWN:
            continue
        assert "--" + item.name.replace("_", "-") in action.option_strings
        assert texts[item.name].rstrip(".") in str(action.help).replace("%%", "%")


@pytest.mark.parametrize(("command", "config"), [("train", TrainConfig),
                                                 ("pretrain", PretrainConfig)])  # fmt: skip
def test_every_value_arrives(command, config):
    """Mutation tried: `dest` left to argparse, which `--features` turned into another name."""
    words = [command, "--out", "x"] + (["m"] if command == "train" else ["--text", "t"])
    expected = {}
    for item in fields(config):
        if item.name in OWN:
            continue
        flag, options = "--" + item.name.replace("_", "-"), field_options(config, item.name)
        if "choices" in options:
            value, said = options["choices"][-1], [options["choices"][-1]]
        elif options.get("nargs"):
            value, said = (0.125, 0.75), ["0.125", "0.75"]
        elif "action" in options:
            value, said, flag = False, [], "--no-" + flag[2:]
        else:
            value = options["type"](7)
            said = [str(value)]
        words += [flag, *said]
        expected[item.name] = value
    args = build_parser().parse_args(words)
    found = {name: value for name, value in given(args, config).items() if name not in OWN}
    assert found == expected


def test_the_old_names_stay():
    words = "train m --out x --features 64 --float32 --at 3:k=4 --layers 0,2".split()
    args = build_parser().parse_args(words)
    assert (args.d_sae, args.bf16, args.per_layer, args.layers) == (64, False, ["3:k=4"], "0,2")
    assert given(build_parser().parse_args("train m --out x".split()), TrainConfig) == {
        "tokens": 1_000_000, "per_layer": (),
    }  # fmt: skip
