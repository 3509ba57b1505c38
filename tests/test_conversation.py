"""A conversation as data: what the chat shows, what a model is given, what an export holds."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.audio import encode_wav
from models.compact import voices
from tabs import assistant, roleplay
from tabs.conversation import export_zip, history_of, messages, words_of
from tabs.shared import ASSETS


@pytest.fixture
def turns(tmp_path: Path) -> list[dict]:
    tone = (8000 * np.sin(np.arange(24_000) / 10)).astype(np.int16)
    for name in ("question.wav", "answer.wav"):
        (tmp_path / name).write_bytes(encode_wav(tone, 24_000))
    question, answer = str(tmp_path / "question.wav"), str(tmp_path / "answer.wav")
    return [
        {"role": "user", "text": "", "heard": "你好吗？", "audio": question},
        {"role": "assistant", "text": "我很好。", "audio": answer},
        {"role": "user", "text": "And\nyou <b>?", "heard": "", "audio": None},
        {"role": "assistant", "text": "Fine.", "audio": str(tmp_path / "gone.wav")},
    ]


def test_turns_are_json(turns: list[dict]):
    assert json.loads(json.dumps(turns)) == turns


def test_chat_shows_text_and_sound(turns: list[dict]):
    shown = messages(turns)
    assert [message["role"] for message in shown] == ["user", "assistant", "user", "assistant"]
    assert shown[0]["content"] == ["你好吗？", {"path": turns[0]["audio"]}]
    assert shown[2]["content"] == ["And\nyou &lt;b&gt;?"]
    assert messages([{"role": "assistant", "text": ""}]) == []  # nothing is written yet: no empty bubble


def test_model_gets_words_and_sound_only_where_there_are_none(turns: list[dict]):
    turns[0]["heard"] = ""
    history = history_of(turns[:3])
    assert [(turn.role, turn.text) for turn in history] == [
        ("user", ""),
        ("assistant", "我很好。"),
        ("user", "And\nyou <b>?"),
    ]
    assert history[0].audio is not None and history[0].audio.seconds == pytest.approx(1.0)
    assert history[1].audio is None


def test_words_of_a_turn_that_was_typed_and_spoken():
    assert words_of({"role": "user", "text": "Answer this:", "heard": "why?"}) == "Answer this:\nwhy?"


def test_export_holds_transcripts_and_sound(turns: list[dict]):
    with zipfile.ZipFile(io.BytesIO(export_zip(turns, "zh"))) as archive:
        assert set(archive.namelist()) == {"transcript.txt", "transcript.json", "01-user.wav", "02-assistant.wav"}
        sound, rate = soundfile.read(io.BytesIO(archive.read("02-assistant.wav")))
        assert (len(sound), rate) == (24_000, 24_000)
        text = archive.read("transcript.txt").decode()
        listed = json.loads(archive.read("transcript.json"))
    assert text.splitlines()[0] == "你: 你好吗？  [01-user.wav]"
    assert [turn["audio"] for turn in listed] == ["01-user.wav", "02-assistant.wav", None, None]
    assert listed[2]["text"] == "And\nyou <b>?"


def test_examples_are_there():
    for example in (*assistant.EXAMPLES, *roleplay.EXAMPLES):
        assert example.text
        if example.clip:
            assert soundfile.info(str(ASSETS / "examples" / example.clip)).duration > 1


def test_characters_speak_both_languages_with_voices_of_the_library():
    assert len(roleplay.characters()) >= 3
    for character in roleplay.characters().values():
        for part in ("name", "character", "voice"):
            assert set(character[part]) == {"en", "zh"}, character["id"]
        for language, voice in character["voice"].items():
            assert voices.voice(voice).language == language
