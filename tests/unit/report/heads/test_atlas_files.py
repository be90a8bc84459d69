"""--out: the suffix decides the form, a folder gets all, and a bad place is refused."""

import json

import pytest

from saekit.errors import InputError
from saekit.heads.scores import HeadScores
from saekit.report.heads.atlas_files import check_out, write_atlas
from tests.unit.heads.samples import atlas

STARTS = {".json": b"{", ".csv": b"head,", ".svg": b"<svg", ".png": b"\x89PNG", ".html": b"<!DOCT"}


@pytest.mark.parametrize("suffix", STARTS)
def test_the_suffix_decides(tmp_path, suffix):
    out = tmp_path / "new" / f"atlas{suffix}"
    assert write_atlas(atlas(), out) == [out]
    assert out.read_bytes().startswith(STARTS[suffix])
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # no temporary file is left


def test_a_folder_gets_all(tmp_path):
    written = write_atlas(atlas(), tmp_path / "all", per_pair=True)
    assert {path.suffix for path in written} == set(STARTS)
    assert {path.name for path in (tmp_path / "all").iterdir()} == {p.name for p in written}
    assert HeadScores.load(tmp_path / "all" / "heads.json").hits is not None
    dotted = tmp_path / "v1.0"
    dotted.mkdir()
    assert len(check_out(dotted)) == 5


def test_json_says_which_pairs_only_when_asked(tmp_path):
    write_atlas(atlas(), tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["per_pair"] is None


@pytest.mark.parametrize(
    ("out", "said"), [("a.pdf", "ends in .pdf"), ("/proc/none/a.svg", "Cannot write")]
)
def test_a_bad_place_is_refused_before_anything_is_computed(tmp_path, out, said):
    with pytest.raises(InputError, match=said):
        check_out(tmp_path / out)
