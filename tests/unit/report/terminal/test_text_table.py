from saekit.report.terminal.text_table import text_table


def test_numbers_end_and_words_start_in_their_column():
    lines = text_table(["head", "share", "why"], [["L1-H2", "80%", "a"], ["L10-H11", "<0.1%", ""]],
                       left=["head", "why"])  # fmt: skip
    assert lines == [
        "  head     share  why",
        "  L1-H2      80%  a",
        "  L10-H11  <0.1%",
    ]


def test_wide_characters_take_two_cells_and_nothing_is_markup():
    lines = text_table(["token", "n"], [["日本", "1"], ["[b]x", "22"]], left=["token"], indent=0)
    assert lines == ["token   n", "日本    1", "[b]x   22"]
