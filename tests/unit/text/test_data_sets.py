"""Hugging Face data sets: what names one, saved folders, streaming, and no network."""

import sys

import datasets
import pytest

from saekit.errors import InputError
from saekit.text.data_sets import HubId, hub_id, is_saved, read_hub, read_saved
from saekit.text.sources import open_text, read_source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:wikitext", HubId("wikitext")),
        ("hf:a/b:sample-10BT", HubId("a/b", "sample-10BT")),
        ("roneneldan/TinyStories", HubId("roneneldan/TinyStories")),
        ("a/b:c:validation", HubId("a/b", "c", "validation")),
        ("generated", None),
        ("./a/b", None),
        ("../b", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("data/stories.txt", None),
        ("data/stories.jsonl.zst", None),
        ("~/texts", None),
    ],
)
def test_what_names_a_data_set(source, expected):
    assert hub_id(source) == expected


def test_a_file_or_folder_is_always_meant_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "a.txt").write_text("one")
    assert list(read_source("owner/name")) == ["one"]


def table(**columns):
    return datasets.Dataset.from_dict(columns)


def test_saved_folders(tmp_path):
    table(text=["one", "two"], n=[1, 2]).save_to_disk(tmp_path / "text")
    table(input_ids=[[1, 2], [3]]).save_to_disk(tmp_path / "ids")
    splits = datasets.DatasetDict(train=table(story=["a"]), test=table(story=["b"]))
    splits.save_to_disk(tmp_path / "splits")
    assert is_saved(tmp_path / "text")
    assert not is_saved(tmp_path)
    assert list(read_source(str(tmp_path / "text"))) == ["one", "two"]
    assert [ids.tolist() for ids in read_source(str(tmp_path / "ids"))] == [[1, 2], [3]]
    assert list(read_source(str(tmp_path / "splits"))) == ["a"]
    datasets.DatasetDict(a=table(x=["a"]), b=table(x=["b"])).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match="splits a, b: give the folder of one"):
        read_saved(tmp_path / "other")


def test_broken_folders(tmp_path):
    table(text=["x" * 100] * 100).save_to_disk(tmp_path / "a")
    file = next((tmp_path / "a").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="Cannot read the data set .*truncated or empty"):
        list(read_saved(tmp_path / "a"))
    file.unlink()
    with pytest.raises(InputError, match="Cannot read the data set"):
        list(read_saved(tmp_path / "a"))
    table(text=[]).save_to_disk(tmp_path / "empty")
    with pytest.raises(InputError, match="Cannot read the data set .*empty"):
        list(read_saved(tmp_path / "empty"))
    table(text=["a"]).filter(lambda _: False).flatten_indices().save_to_disk(tmp_path / "none")
    with pytest.raises(InputError, match="Cannot read the data set .*none"):
        list(read_saved(tmp_path / "none"))
    table(a=["x"], b=["y"]).save_to_disk(tmp_path / "columns")
    with pytest.raises(InputError, match=r'no column "text".*it has a, b'):
        list(read_saved(tmp_path / "columns"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose only data set is a parquet file, streamed by `datasets` as any other."""
    path = tmp_path / "data.parquet"
    table(text=["one", "two", "three"]).to_parquet(path)
    asked = []
    original = datasets.load_dataset

    def load_dataset(name, config=None, split=None, streaming=False):
        asked.append((name, config, split, streaming))
        return original("parquet", data_files={"train": str(path)}, split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    return asked


def test_streaming(hub):
    assert list(read_source("hf:a/b:c")) == ["one", "two", "three"]
    assert hub == [("a/b", "c", "train", True)]
    text = open_text(["a/b"])
    assert [next(text) for _ in range(4)] == ["one", "two", "three", "one"]
    with pytest.raises(InputError, match=r'"a/b:c" .*cannot be opened .*config or split'):
        read_source("a/b:c:nonsense")


def test_a_connection_that_is_lost(hub, monkeypatch):
    class Lost:
        def __iter__(self):
            yield {"text": "one"}
            yield {"text": "two"}
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Lost())
    documents = read_hub(HubId("a/b"))
    with pytest.raises(InputError, match=r"after 2 documents \(reset by peer\).*--resume"):
        list(documents)


def test_no_network():
    """The tests run with HF_HUB_OFFLINE=1."""
    for source in ("roneneldan/TinyStories", "hf:nothing"):
        with pytest.raises(InputError, match="no local file or folder and cannot be opened"):
            open_text([source])


def test_whatever_the_client_of_the_hub_raises(hub, monkeypatch):
    """Without HF_HUB_OFFLINE a lost network was an error of httpx2, which nobody had named."""

    class ConnectError(Exception):
        pass

    def fail(*_, **__):
        raise ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    with pytest.raises(InputError, match="offline, .*Name or service not known"):
        read_source("hf:a/b")


def test_without_the_package(tmp_path, monkeypatch):
    table(text=["one"]).save_to_disk(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("hf:a/b", str(tmp_path / "a")):
        with pytest.raises(InputError, match=r"needs the package datasets: pip install"):
            read_source(source)
