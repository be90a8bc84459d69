"""The pages without a browser (AppTest): what they show, and what they say when they cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from app import state
from tests.app.conftest import VIEWER

SEED = 'The opposite of "large" is "'
BROWSE = f"""
import os, sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file({VIEWER!r}, default_timeout=60).run()
assert not app.exception and not app.error, (app.exception, app.error)
app.switch_page("views/features.py").run()
app.text_input(key="token").set_value("large").run()
assert len(app.dataframe) == 1, app.main
app.switch_page("views/feature.py").run()
app.text_input(key="feature").set_value("1/0").run()
assert not app.exception and not app.error, (app.exception, app.error)
heavy = {{"torch", "transformers", "sae_lens", "transformer_lens"}} & set(sys.modules)
print("loaded", sorted(heavy))
"""


@pytest.fixture(autouse=True)
def asked_for(viewed_set, monkeypatch):
    monkeypatch.setenv(state.FOLDER_VARIABLE, str(viewed_set))


def opened(page: str | None = None, **query: str) -> AppTest:
    app = AppTest.from_file(VIEWER, default_timeout=120)
    for name, value in query.items():
        app.query_params[name] = value
    if page:
        app.run()
        app.switch_page(f"views/{page}.py")
    return app.run()


def messages(app: AppTest) -> str:
    return "\n".join(element.value for element in [*app.error, *app.info, *app.warning])


def test_browsing_loads_no_torch(viewed_set):
    result = subprocess.run(
        [sys.executable, "-c", BROWSE], capture_output=True, text=True, check=False,
        cwd=Path(VIEWER).parents[1], env={**os.environ, state.FOLDER_VARIABLE: str(viewed_set)},
    )  # fmt: skip
    assert result.stdout.strip() == "loaded []", result.stdout + result.stderr


def test_a_stored_circuit_is_shown_first():
    app = opened()
    assert not app.exception and not app.error
    assert app.text_input(key="prompt").value == SEED
    assert app.selectbox(key="set").value == "tiny"
    assert [tab.label for tab in app.tabs][:3] == ["Selected", "Heads", "Sets of heads"]
    assert app.dataframe[0].value.iloc[0]["head"] == "L11-H7"


def test_another_example_and_a_live_prompt():
    app = opened()
    app.selectbox(key="example").set_value('The opposite of "small" is "').run()
    assert app.text_input(key="prompt").value == 'The opposite of "small" is "'
    app.text_input(key="prompt").set_value('The word "large" is "').run()
    assert not app.exception, app.exception
    assert not app.error, messages(app)
    assert any(tab.label == "Completeness" for tab in app.tabs)


def test_the_address_restores_the_choice():
    """Also a head that is not among the circuit's own.

    Mutation tried: only the circuit's heads as options (the address then lost a clicked head).
    """
    app = opened(query="8", key="5", heads="5", head="L0-H3")
    assert app.selectbox(key="head").value == "L0-H3"
    assert app.number_input(key="query").value == 8
    assert app.number_input(key="key").value == 5
    assert not app.exception and not app.error


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"prompt": "word " * 80}, "reads at most"),
        ({"query": "80"}, "80"),
        ({"key": "8", "query": "5"}, "8"),
        ({"target": "1/999"}, "1/999"),
        ({"target": "no such thing at all"}, "no such thing at all"),
    ],
)
def test_bad_questions_are_answered_in_a_sentence(query, said):
    app = opened(**query)
    assert not app.exception, app.exception
    assert len(app.error) == 1 and said in app.error[0].value


def test_a_dead_end_has_a_way_back():
    app = opened(key="8")
    assert "Key position 8 is not before" in messages(app)
    app.button[0].click().run()
    assert not app.error and app.number_input(key="key").value is None


def test_tokens_are_no_markdown():
    assert state.literal("a [b](http://c) :red[x] *d* $e$") == (
        r"a \[b\](http://c) :red\[x\] \*d\* \$e\$"
    )


def test_a_circuit_of_other_weights_is_not_shown(viewed_set, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(viewed_set, other)
    stored = next((other / "circuits").glob("*.json"))
    document = json.loads(stored.read_text())
    stored.write_text(json.dumps({**document, "fingerprint": "f" * 64}))
    monkeypatch.setenv(state.FOLDER_VARIABLE, str(other))
    assert f"{stored} was traced on other weights" in messages(opened())


def test_an_empty_prompt():
    app = opened()
    app.text_input(key="prompt").set_value("").run()
    assert "The prompt is empty" in messages(app) and not app.exception


def test_features_of_a_token():
    app = opened("features")
    assert "Type a token" in messages(app)
    app.text_input(key="token").set_value("large").run()
    table = app.dataframe[0].value
    assert {"large"} <= set(table["token"]) and len(table) > 0
    app.text_input(key="layers").set_value("9").run()
    assert "0 to 3" in messages(app)
    app.text_input(key="layers").set_value("1-2").run()
    assert set(app.dataframe[0].value["layer"]) <= {1, 2}
    app.text_input(key="token").set_value("no token like this").run()
    assert "no token like this" in messages(app) and not app.exception


def test_a_question_outlives_a_visit_to_another_page(monkeypatch):
    """What the browser's Back finds: an empty address and fresh widgets (AppTest keeps both).

    Mutations tried: `restore` that does nothing; one that ignores the address.
    """
    names = ("token", "rank")
    session = {"token": "large", "rank": "lift"}
    monkeypatch.setattr(state, "st", SimpleNamespace(session_state=session, query_params={}))
    state.keep("features", names)
    del session["token"], session["rank"]
    state.restore("circuit", names)
    assert "token" not in session
    state.restore("features", names)
    assert (session["token"], session["rank"]) == ("large", "lift")
    del session["token"], session["rank"]
    state.st.query_params["token"] = "small"
    state.restore("features", names)
    assert "rank" not in session


def test_a_feature():
    app = opened("feature")
    assert "for example 0/0" in messages(app)
    app.text_input(key="feature").set_value("1/3").run()
    assert not app.exception and not app.error
    assert [metric.label for metric in app.metric][0] == "Density"
    for bad, said in (("1/99", "does not exist"), ("7/1", "7"), ("x", "layer/index")):
        app.text_input(key="feature").set_value(bad).run()
        assert said in messages(app) and not app.exception


def test_missing_files_name_the_command(viewed_set, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(viewed_set / "manifest.json", bare)
    monkeypatch.setenv(state.FOLDER_VARIABLE, str(bare))
    assert f"saekit index {bare}" in messages(opened("features"))
    (bare / "circuits").mkdir()
    (bare / "circuits" / "broken.json").write_text('{"schema_version": 1, "mod')
    assert "broken.json is not valid JSON" in messages(opened())


def test_a_set_of_another_version_is_refused(viewed_set, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    manifest = json.loads((viewed_set / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    monkeypatch.setenv(state.FOLDER_VARIABLE, str(other))
    app = opened()
    assert "schema_version 99" in messages(app) and not app.exception


def test_no_dictionary_set_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv(state.FOLDER_VARIABLE, str(tmp_path / "nothing"))
    monkeypatch.setattr(state, "DEFAULT_DICTIONARIES", "dictionaries_that_are_not_there/x")
    assert "saekit demo" in messages(opened())
