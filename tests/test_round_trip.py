"""Kokoro speaks ten English and ten Chinese sentences, Whisper hears them: error rates of at most 5 %."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from models.audio import from_pcm
from models.catalog import KOKORO, WHISPER_BASE

pytestmark = pytest.mark.compact

SENTENCES = yaml.safe_load((Path(__file__).parent / "fixtures" / "sentences.yaml").read_text(encoding="utf-8"))
MOST = 0.05


@pytest.fixture(scope="module")
def speaker(compact_weights):
    from models.compact.speak import Speaker

    return Speaker(compact_weights.path(KOKORO))


@pytest.fixture(scope="module")
def recognizer(compact_weights):
    from models.compact.hear import Recognizer

    return Recognizer(compact_weights.path(WHISPER_BASE))


def edits(said: list[str], heard: list[str]) -> int:
    """Levenshtein distance of two lists."""
    row = list(range(len(heard) + 1))
    for n, unit in enumerate(said, 1):
        before, row[0] = row[0], n
        for m, other in enumerate(heard, 1):
            before, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, before + (unit != other))
    return row[-1]


def units(text: str, language: str) -> list[str]:
    """Words of English, characters of Chinese, without case and punctuation; numbers in one way of writing."""
    text = text.lower()
    if language == "zh":
        import cn2an

        return re.findall(r"[\u4e00-\u9fff]|[a-z0-9]+", cn2an.transform(text, "an2cn"))
    return re.findall(r"[a-z0-9']+", text.replace("’", "'"))


@pytest.mark.parametrize(("language", "voice"), [("en", "af_heart"), ("zh", "zf_xiaoxiao")])
def test_what_is_spoken_is_heard(speaker, recognizer, language, voice):
    wrong = total = 0
    misheard = []
    for sentence in SENTENCES[language]:
        sound = from_pcm(np.concatenate(list(speaker.speak(sentence, voice, language))), 24_000)
        *_, transcript = recognizer.transcribe(sound, language)
        said, heard = units(sentence, language), units(transcript.text, language)
        errors = edits(said, heard)
        wrong, total = wrong + errors, total + len(said)
        if errors:
            misheard.append(f"{sentence!r} was heard as {transcript.text!r}")
    print(f"\n{language}: {wrong} of {total} wrong, {100 * wrong / total:.1f} %")
    assert wrong / total <= MOST, "\n".join(misheard)
