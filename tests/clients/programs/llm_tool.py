"""llm: its models of OpenAI-compatible servers, made by the entry that docs/clients.md gives and
the key that `llm keys set` keeps.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import llm
from common import BASE, CITY, QUESTION, SCHEMA, TOKEN, weather

PACKAGE = "llm"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "clients.md"
FOLDER = tempfile.TemporaryDirectory()


def _set_up() -> None:
    """As the page says, but for the address."""
    os.environ["LLM_USER_PATH"] = FOLDER.name
    entry = PAGE.read_text("utf-8").partition("```yaml\n")[2].partition("```")[0]
    assert "http://127.0.0.1:8765" in entry
    entry = entry.replace("http://127.0.0.1:8765", BASE)
    Path(FOLDER.name, "extra-openai-models.yaml").write_text(entry, "utf-8")
    keys = [sys.executable, "-m", "llm", "keys", "set", "quietchoir", "--value", TOKEN]
    subprocess.run(keys, check=True, timeout=60)


_set_up()


def _model(name: str = "default") -> Any:
    model = llm.get_model("quietchoir")
    model.model_name = name
    return model


def get_weather(city: str = CITY) -> str:
    """Tells the weather of a city"""
    return weather(city)


def chat() -> None:
    assert _model().prompt("hello", system="Be brief.", stream=False).text() == "Good morning."


def streaming() -> None:
    assert "".join(_model().prompt("hello", stream=True)) == "Good morning."


def tools() -> None:
    for stream in (False, True):
        said = _model().chain(QUESTION, tools=[get_weather], stream=stream).text()
        assert weather(CITY) in said, said


def json_schema() -> None:
    said = _model().prompt("hello", schema=SCHEMA, stream=False).text()
    assert json.loads(said) == {"city": CITY, "degrees": 7}


def errors() -> None:
    try:
        _model("gpt-9").prompt("hello", stream=False).text()
    except Exception as error:
        assert "gpt-9" in str(error), error
    else:
        raise AssertionError("no error")
    assert llm.__name__ == "llm"
