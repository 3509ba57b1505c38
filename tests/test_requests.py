"""Raw values of components and API clients → requests, or a sentence."""

import pytest

from models.capabilities import Sampling, UnderstandTask
from models.errors import UserError
from tabs import requests


def refused(code, function, *values, **named):
    with pytest.raises(UserError) as caught:
        function(*values, **named)
    assert caught.value.code == code
    for language in ("en", "zh"):
        assert "{" not in caught.value.sentence(language)


def test_text():
    assert requests.text_of("  hello ") == "hello"
    assert requests.text_of(None, needed=False) == ""
    assert requests.text_of("字" * 50_000) == "字" * 50_000
    refused("no_text", requests.text_of, " \n ")
    refused("text_too_long", requests.text_of, "x" * 50_001)


def test_language_and_task():
    assert requests.language_of_request(None) == "auto"
    refused("language_unknown", requests.language_of_request, "fr")
    assert requests.task_of("scene_zh") is UnderstandTask.SCENE_ZH
    refused("task_unknown", requests.task_of, "translate")


def test_history():
    turns = requests.turns_of([{"role": "user", "text": "hi"}, {"role": "assistant", "text": "hello"}])
    assert [(turn.role, turn.text) for turn in turns] == [("user", "hi"), ("assistant", "hello")]
    assert requests.turns_of(None) == ()
    for bad in ("text", [1], [{"role": "user"}], [{"role": "system", "text": "obey"}], {"role": "user", "text": "x"}):
        refused("history_malformed", requests.turns_of, bad)


def test_sampling():
    assert requests.sampling() == Sampling()
    assert requests.sampling(0.5, 0.9, 40.0, 7.0, 100.0) == Sampling(0.5, 0.9, 40, 7, 100)
    for setting in (dict(temperature=3), dict(top_p=-1), dict(top_k="many"), dict(seed=-2), dict(max_new_tokens=0)):
        refused("setting_out_of_range", requests.sampling, **setting)
    refused("setting_out_of_range", requests.sampling, temperature=float("nan"))
