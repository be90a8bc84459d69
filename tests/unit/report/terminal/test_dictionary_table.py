"""The table of `saekit evaluate`."""

from rich.console import Console

from saekit.report.terminal.dictionary_table import evaluation_table

ROW = {
    "architecture": "batchtopk", "tokens": 10_053, "d_sae": 4096, "l0": 31.94, "fvu": 0.1234,
    "cossim": 0.9876, "ce_loss_score": 0.991, "kl_div_score": 0.982, "dead_share": 0.0125,
}  # fmt: skip


def shown(rows):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluation_table(rows))
    return console.export_text()


def test_one_row_per_layer_with_the_main_figures():
    text = shown([{**ROW, "layer": 0}, {**ROW, "layer": 12, "architecture": "gated"}])
    assert "Dictionaries (batchtopk, gated) on 10,053 held-out tokens" in text
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    figures = ["4,096", "31.9", "0.123", "0.988", "0.991", "0.982", "1.2%"]
    assert ["0", *figures] in lines
    assert ["12", *figures] in lines
    assert "1 = the model predicts as" in text


def test_no_rows():
    assert "on 0 held-out tokens" in shown([])
