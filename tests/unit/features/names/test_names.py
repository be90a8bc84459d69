"""Rules, their file, labellers: on the planted model, whose truth is known."""

import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import h5py
import numpy as np
import pytest

from saekit.errors import FormatError, InputError, MismatchError
from saekit.features.index.feature_index import FeatureIndex
from saekit.features.names import labellers as labelling
from saekit.features.names.labellers import ChatLabeller, Label, marked_text
from saekit.features.names.labels import _said, give_labels
from saekit.features.names.lexicons import Words
from saekit.features.names.name_file import NAMES, FeatureNames, LayerNames, write_names
from saekit.features.names.names import make_names
from saekit.features.names.rules import context_words, name_features
from saekit.report.terminal.feature_tables import hits_table, named_csv, named_table, record_table
from tests.unit.conftest import LARGE, SPACE_LARGE


@pytest.fixture(scope="module")
def named(index, plain_model, dictionaries, documents, tmp_path_factory):
    """A copy of the index with its names."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copy(index.path, folder)
    text = [d + f" A large {n} house." for n, d in enumerate(documents * 6)]
    make_names(plain_model, dictionaries, folder / "index.h5", text, tokens=12_000, text_name="own")
    with FeatureIndex.open(folder / "index.h5") as opened:
        yield opened


def test_planted_features_get_their_word(index):
    names = name_features(index)[0]
    for feature in (LARGE, SPACE_LARGE):
        assert names.text[feature] == "large"  # both forms, one name
        assert names.kind[feature] == 1
        assert names.share[feature] == 1
    assert "" in names.text  # random features have names by chance at most


def test_each_rule_by_hand(index, tmp_path):
    """One feature's stored statistics, changed so that each rule holds in turn."""
    path = tmp_path / "index.h5"
    shutil.copy(index.path, path)
    words = Words(index.vocabulary)
    house = int(np.flatnonzero(words.of_token == words.number("large"))[0])

    def named(layer, **columns):
        slot, feature = index.slot(layer), 11
        with h5py.File(path, "r+") as file:
            for name in ("word_share", "after_share", "class_share"):
                file[f"features/{name}"][slot, feature] = 0
            file["features/count"][slot, feature] = 50
            file["examples/row"][slot, feature] = -1
            file["features/output_token"][slot, feature] = np.arange(100, 115)
            for name, value in columns.items():
                file[f"features/{name}"][slot, feature] = value
        with FeatureIndex.open(path) as changed:
            names = name_features(changed, n_layers=3)[slot]
        return names.text[feature], names.kind[feature]

    output = {"after": house, "after_share": [100, 0]}
    word = {"word": house, "word_share": 200}
    brackets = {"class": index.classes.index("brackets") + 1, "class_share": 230}
    assert named(0, **word) == ("large", 1)
    assert named(0, word=house, word_share=100) == ("", 0)  # less than half
    assert named(0, **brackets) == ("brackets", 2)
    assert named(0, **brackets, **output) == ("brackets", 2)
    assert named(3, **brackets, **output) == ("large", 3)  # late: output first
    assert named(0, **output) == ("large", 3)
    assert named(0, after=house, after_share=[60, 0]) == ("", 0)
    twice = np.arange(100, 115)
    twice[[1, 4]] = [house, np.flatnonzero(words.of_token == words.number("large"))[1]]
    assert named(0, output_token=twice) == ("large", 3), twice
    assert named(0) == ("", 0)
    with h5py.File(path, "r+") as file:
        file["features/count"][0, 11] = 9
        file["features/word"][0, 11], file["features/word_share"][0, 11] = house, 255
    with FeatureIndex.open(path) as changed:
        assert name_features(changed)[0].text[11] == ""  # too rare


def test_words_in_front_end_with_the_document():
    words = Words(["bos", " a", " b", "A", " c"])
    row = np.array([0, 1, 2, 0, 3, 4, 2, 1], np.uint16)
    assert context_words(row, 7, 0, words).tolist() == sorted(
        {words.number("a"), words.number("c"), words.number("b")}
    )
    assert context_words(row, 2, 0, words).tolist() == [words.number("a")]
    assert context_words(row, 0, 0, words).tolist() == []


def test_scores_of_planted_names(named):
    assert named.names is not None
    name = named.names.get(0, SPACE_LARGE)
    assert (name.text, name.kind, name.shown) == ("large", "input", "large (input)")
    assert name.evidence["share"] == 1 and name.evidence["lift"] > 10
    assert "100% of its activation" in name.rule
    scores = name.scores
    assert scores.detection is not None and scores.detection >= 0.95
    assert scores.chosen_detection is not None and scores.chosen_detection >= 0.95
    # " large" fires, "large" and " Large" do not: the name holds on all of them
    assert scores.recall == 1 and scores.precision is not None and scores.precision > 0.5
    assert scores.rise is None
    assert named.names.n_tokens >= 10_000 and named.names.text == "own"
    summary = named.names.summary
    assert summary["features"] == 210
    assert summary["named"] == sum(
        summary[kind]["names"] for kind in ("input", "class", "output", "context")
        if kind in summary
    )  # fmt: skip
    assert (0, SPACE_LARGE) in list(named.names.named(" Large "))
    assert list(named.names.named("nothing of this name")) == []
    unnamed = next(f for f in range(70) if not named.names.kinds[0, f])
    assert named.names.get(0, unnamed).text == f"feature 0/{unnamed}"


def test_names_are_shown(named, capsys):
    from rich.console import Console

    console = Console(width=110)
    console.print(record_table(named.feature(0, SPACE_LARGE)))
    console.print(hits_table(named, named.by_token(" large", top=3)))
    console.print(named_table(named, [(0, SPACE_LARGE)]))
    shown = capsys.readouterr().out
    assert "feature 0/5  large (input)" in shown
    assert "balanced accuracy of detection 1" in shown and "another feature's name" in shown
    assert shown.count("large (input)") >= 4
    rows = named_csv(named, [(0, SPACE_LARGE), (0, 1)]).splitlines()
    assert rows[0].startswith("name,text,kind,density,detection,fuzzing")
    assert rows[1].startswith("0/5,large,input,")


def test_names_of_other_dictionaries_are_refused(named, make_set, plain_model, documents, tmp_path):
    from saekit.features.index.build import build_index

    other = make_set(8)
    build_index(plain_model, other, documents, other.path / "index.h5", tokens=300, context=40)
    shutil.copy(named.path.parent / NAMES, other.path / NAMES)
    with (
        FeatureIndex.open(other.path) as opened,
        pytest.raises(MismatchError, match="saekit names"),
    ):
        opened.feature(0, 1)


def test_broken_files_of_names(named, tmp_path):
    path = tmp_path / "index.h5"
    shutil.copy(named.path, path)
    data = (named.path.parent / NAMES).read_bytes()
    for content, message in ((data[:500], "truncated"), (b"no HDF5", "truncated")):
        (tmp_path / NAMES).write_bytes(content)
        with FeatureIndex.open(path) as opened, pytest.raises(FormatError, match=message):
            opened.feature(0, 1)
    (tmp_path / NAMES).write_bytes(data)
    with h5py.File(tmp_path / NAMES, "r+") as file:
        file.attrs["schema_version"] = 9
    with FeatureIndex.open(path) as opened, pytest.raises(FormatError, match="schema_version 9"):
        opened.feature(0, 1)
    (tmp_path / NAMES).write_bytes(data)
    with h5py.File(tmp_path / NAMES, "r+") as file:
        del file["features/auroc"]
    with FeatureIndex.open(path) as opened, pytest.raises(FormatError, match="damaged"):
        opened.feature(0, 1)


@pytest.mark.parametrize("which", ["index.h5", NAMES])
def test_damaged_bytes_are_one_sentence(named, tmp_path, which):
    """h5py answers damage with several kinds of errors; none of them may reach the user."""
    # mutation tried: catching OSError and KeyError alone lets RuntimeError through
    for name in ("index.h5", NAMES):
        shutil.copy(named.path.parent / name, tmp_path)
    data, rng, refused = (tmp_path / which).read_bytes(), np.random.default_rng(0), 0
    for _ in range(30):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 20).tolist():
            damaged[place] ^= 255
        (tmp_path / which).write_bytes(damaged)
        try:
            with FeatureIndex.open(tmp_path) as opened:
                opened.feature(2, 1)
                opened.by_token(" large")
        except FormatError:
            refused += 1
    assert refused >= 15


def test_the_file_keeps_what_it_was_given(index, tmp_path):
    layers = [LayerNames.empty(size) for size in index.sizes]
    layers[1].set(3, 'a "b", ü', "context", "context", 0.75, 12.0)
    layers[1].scores["detection"][3], layers[1].scores["rise"][3] = 0.93, -1.5
    write_names(tmp_path / NAMES, index, layers, labeller="me", text="", n_tokens=1, summary={})
    found = FeatureNames.open(tmp_path / NAMES, index).get(index.layers[1], 3)
    assert (found.text, found.kind) == ('a "b", ü', "context")
    assert found.scores.detection == pytest.approx(0.93)
    assert (found.scores.rise, found.scores.fuzzing) == (-1.5, None)


def test_free_texts_are_found_whatever_their_capitals(index, tmp_path):
    # mutation tried: looked up in lower case as it was, what has a capital is never found
    layers = [LayerNames.empty(size) for size in index.sizes]
    layers[0].set(3, "Words of Size", "text", "labeller", 0, 0)
    layers[1].set(4, "words of size", "text", "labeller", 0, 0)
    layers[1].set(5, "size", "input", "current word", 1, 20)
    write_names(tmp_path / NAMES, index, layers, labeller="me", text="", n_tokens=1, summary={})
    names = FeatureNames.open(tmp_path / NAMES, index)
    assert sorted(names.named("words of Size")) == [(index.layers[0], 3), (index.layers[1], 4)]
    assert list(names.named("")) == list(names.named("words")) == []


def test_no_names_at_all_are_a_file(index, tmp_path):
    layers = [LayerNames.empty(size) for size in index.sizes]
    write_names(tmp_path / NAMES, index, layers, labeller="me", text="", n_tokens=1, summary={})
    names = FeatureNames.open(tmp_path / NAMES, index)
    assert names.get(index.layers[0], 3).text == "feature 0/3"


class _Chat(BaseHTTPRequestHandler):
    """Names everything "the word large" and judges by looking for it."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        system, user = (message["content"] for message in body["messages"])
        self.server.seen.append((self.path, self.headers.get("Authorization"), body["model"]))
        if "JSON list" in system:
            wanted = "large>>" if "between << and >> are the ones" in system else " large"
            answer = json.dumps([int(wanted in text) for text in _excerpts(user)])
        else:
            answer = " the word\nlarge "
        answer = self.server.answer or answer
        if self.server.once:  # one bad answer, then the right ones
            answer = self.server.once.pop()
        document = json.dumps({"choices": [{"message": {"content": answer}}]})
        data = (self.server.raw or document).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def _excerpts(user):
    """Excerpts of a numbered list, which may have line breaks inside."""
    found, number = [], 1
    while (start := user.find(f"{number}. ") if number == 1 else user.find(f"\n{number}. ")) >= 0:
        end = user.find(f"\n{number + 1}. ")
        found.append(user[start:end] if end >= 0 else user[start:])
        number += 1
    return found


@pytest.fixture
def chat():
    server = HTTPServer(("127.0.0.1", 0), _Chat)
    server.seen, server.answer, server.once, server.raw = [], None, [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_chat_model_names_and_is_scored(
    chat, named, plain_model, dictionaries, documents, tmp_path
):
    shutil.copy(named.path, tmp_path)
    labeller = ChatLabeller(f"http://127.0.0.1:{chat.server_port}/v1/", "some-model", key="secret")
    text = [d + f" A large {n} house." for n, d in enumerate(documents * 6)]
    make_names(
        plain_model, dictionaries, tmp_path / "index.h5", text, tokens=12_000,
        labeller=labeller, features=[(0, SPACE_LARGE), (0, 1)],
    )  # fmt: skip
    assert set(chat.seen) == {("/v1/chat/completions", "Bearer secret", "some-model")}
    with FeatureIndex.open(tmp_path) as opened:
        assert opened.names.labeller == "some-model"
        name = opened.names.get(0, SPACE_LARGE)
        assert (name.text, name.kind, name.rule) == (
            "the word large",
            "text",
            "given by a labeller",
        )
        assert name.scores.detection is not None and name.scores.detection > 0.95
        assert name.scores.fuzzing is not None and name.scores.fuzzing > 0.95
        assert name.scores.f1 is None
        assert opened.names.get(0, LARGE).kind == "input"  # by rules, as it was not asked for


def test_a_function_names_with_a_predicate(
    named, plain_model, dictionaries, documents, tmp_path, live_feature
):
    shutil.copy(named.path, tmp_path)

    def labeller(record):
        return Label(" Large", "output" if record.layer == 2 else "input")

    text = [d + f" A large {n} house." for n, d in enumerate(documents * 6)]
    make_names(
        plain_model, dictionaries, tmp_path / "index.h5", text, tokens=12_000,
        labeller=labeller, features=[(0, SPACE_LARGE), (2, live_feature)],
    )  # fmt: skip
    with FeatureIndex.open(tmp_path) as opened:
        name = opened.names.get(0, SPACE_LARGE)
        assert name.text == "large" and (name.scores.detection or 0) >= 0.95
        other = opened.names.get(2, live_feature)  # kept, however badly it does
        assert (other.text, other.kind) == ("large", "output")
        assert (other.scores.detection or 0) < 0.9
        assert other.scores.rise is not None and other.scores.rise_rank is not None
        assert name.scores.rise is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (Label("x", "nonsense"), 'kind "nonsense"'),
        (Label(" ", "text"), "not empty"),
        (Label("animals", "class"), "known are brackets"),
        (Label("notaword", "input"), "no single token"),
        (Label("large, notaword", "context"), '"notaword"'),
    ],
)
def test_wrong_labels(index, label, message):
    names = [LayerNames.empty(size) for size in index.sizes]
    with pytest.raises(InputError, match=message):
        give_labels(index, names, lambda record: label, [(0, LARGE)])


@pytest.mark.parametrize(
    "answer",
    ["[0, 1]", "Excerpt [1] is silent: [0, 1]", "[0, 1] because of [1]", "[false, true]"],
)
def test_answers_with_words_around(chat, answer):
    # mutation tried: from the first [ to the last ], as it was, is no JSON in two of these
    labeller = ChatLabeller(f"http://127.0.0.1:{chat.server_port}", "m")
    for text in (answer, f"<think>[1, 1]?</think>\n{answer}"):
        chat.answer = text
        assert labeller.judge("x", ["a", "b"], "detection") == [False, True]


def test_one_bad_answer_is_asked_again(chat):
    labeller = ChatLabeller(f"http://127.0.0.1:{chat.server_port}", "m")
    chat.answer, chat.once = "[0, 1]", ["I cannot"]
    assert labeller.judge("x", ["a", "b"], "fuzzing") == [False, True]
    assert len(chat.seen) == 2


def test_what_a_model_thinks_is_no_name(chat, index):
    labeller = ChatLabeller(f"http://127.0.0.1:{chat.server_port}", "m")
    record = index.feature(0, LARGE)
    for answer, name in (
        ("<think>\nHm [1]\n</think>\n size\n words", "size words"),
        ("<think>without an end", None),
    ):
        chat.answer = answer
        label = labeller(record)
        assert (label and label.text) == name


@pytest.mark.parametrize(
    "raw",
    ['{"choices": [{"message": {"content": null}}]}', '{"choices": []}', "[]", "<html>", '"x"'],
)
def test_answers_of_another_form(chat, index, raw):
    # mutation tried: str() of the content names a feature "None" when a model refuses
    chat.raw = raw
    labeller = ChatLabeller(f"http://127.0.0.1:{chat.server_port}", "m")
    with pytest.raises(InputError, match="does not answer like"):
        labeller(index.feature(0, LARGE))


@pytest.mark.parametrize(
    "sent", [b"", b"nonsense", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", None]
)
def test_servers_that_break_off(index, monkeypatch, sent):
    """Nothing, no HTTP, half an answer, and silence: one sentence each."""
    monkeypatch.setattr(labelling, "_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                if sent is None:
                    done.wait(30)
                else:
                    connection.sendall(sent)

        done = threading.Event()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        labeller = ChatLabeller(f"http://127.0.0.1:{server.getsockname()[1]}", "m")
        with pytest.raises(InputError, match="cannot be asked"):
            labeller(index.feature(0, LARGE))
        done.set()
        thread.join()


def test_a_port_that_is_no_number(index):
    with pytest.raises(InputError, match="cannot be asked"):
        ChatLabeller("http://127.0.0.1:port/v1", "m")(index.feature(0, LARGE))


def test_a_judge_learns_nothing_from_the_order():
    """One that calls the first half active is as good as chance, not perfect."""
    # mutation tried: positives first, as it was, and this judge is right every time
    said = _said(lambda label, excerpts, task: [i < 50 for i in range(100)], "x", ["a"] * 100, "")
    assert 15 <= said[:50].sum() <= 35
    excerpts = [str(n) for n in range(100)]
    odd = _said(lambda label, texts, task: [int(t) % 2 for t in texts], "x", excerpts, "")
    assert odd.tolist() == [n % 2 == 1 for n in range(100)]
    with pytest.raises(InputError, match="99 answers to 100 excerpts"):
        _said(lambda label, texts, task: [True] * 99, "x", excerpts, "detection")


def test_a_labeller_that_returns_something_else(index):
    names = [LayerNames.empty(size) for size in index.sizes]
    with pytest.raises(InputError, match="0/3 a dict; it must return a Label"):
        give_labels(index, names, lambda record: {"text": "x"}, [(0, LARGE)])


def test_wrong_endpoints(chat, index):
    with pytest.raises(InputError, match="not an http address"):
        ChatLabeller("localhost:8000", "m")
    labeller = ChatLabeller(f"http://127.0.0.1:{chat.server_port}", "m")
    for answer, message in (("I cannot", "list of 2 times"), ("[1, 0, 1]", "list of 2 times")):
        chat.answer = answer
        with pytest.raises(InputError, match=message):
            labeller.judge("x", ["a", "b"], "detection")
    chat.shutdown()
    chat.server_close()
    with pytest.raises(InputError, match="is the server up"):
        labeller(index.feature(0, LARGE))


def test_marks_in_excerpts(index):
    example = index.feature(0, SPACE_LARGE).examples[0]
    assert "<< large>>" in marked_text(example)
