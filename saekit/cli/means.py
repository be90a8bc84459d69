"""The command that prepares mean ablation: means."""

import argparse
from pathlib import Path

from saekit.cli.common import Command, add_device, add_text, held_out_text, show, text_name


def _means(args: argparse.Namespace) -> None:
    from saekit.files import ensure_writable
    from saekit.model.loading import load_model
    from saekit.routes.ablation.head_means import head_means

    out = Path(args.out)
    ensure_writable(out.parent)
    model = load_model(args.model, device=args.device)
    found = head_means(model, held_out_text(args), args.tokens, args.context)
    found.save(out)
    document = {
        "means": str(out),
        "model": model.id,
        "fingerprint": model.fingerprint,
        "tokens": found.tokens,
        "context": found.value.shape[2],
        "text": text_name(args),
        "bytes": out.stat().st_size,
    }
    show(
        args, document,
        f"{out}: means of {model.n_layers} x {model.n_heads} heads over {found.tokens:,} tokens, "
        f"at {found.value.shape[2]} positions ({document['bytes'] / 1e6:.1f} MB)",
    )  # fmt: skip


def add(command: Command) -> None:
    """The subcommand of this module."""
    sub = command("means", _means, "the corpus mean of what every head moves, for mean ablation")
    sub.add_argument("model", metavar="MODEL", help="gpt2-mini, a hub id or a folder")
    sub.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    sub.add_argument("--context", type=int, default=128, help="positions (default 128)")
    add_text(sub, tokens=100_000)
    add_device(sub)
