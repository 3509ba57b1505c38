"""Plain text in English and Chinese, mixed as it comes → phonemes and token ids of Kokoro. Knows nothing of sound.

English: espeak-ng through phonemizer. Mandarin: jieba's words, pypinyin's readings, misaki's pinyin → IPA.
Both are loaded when first needed; jieba's dictionary takes about 1.5 s the first time, 0.5 s from its cache.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from models.reading import HANZI, name_units, read_signs, reading, runs

MOST_TOKENS = 510  # Kokoro's context of 512 less the pad token at each end
_LOCK = threading.Lock()  # espeak-ng and the lazy loads hold process-wide state

EMAIL = re.compile(r"\b([\w.+-]+)@([\w-]+(?:\.[\w-]+)+)")
LINK = re.compile(r"\b(?:https?://|www\.)(?:www\.)?([\w-]+(?:\.[\w-]+)+)[^\s\u3000-\u9fff，。！？]*", re.IGNORECASE)
SPEAKABLE = re.compile(rf"[A-Za-zÀ-ɏ\d{HANZI}]")
UNREADABLE = re.compile(rf"[^A-Za-zÀ-ɏ\d{HANZI}\s.,!?;:'’\"“”()%$\-—…，。！？；：、（）《》「」【】]")
TO_ASCII = str.maketrans({chr(full): chr(full - 0xFEE0) for full in (*range(0xFF10, 0xFF5B), 0xFF05)} | {"’": "'"})
FROM_CHINESE_MARKS = str.maketrans(
    {"，": ", ", "、": ", ", "。": ". ", "！": "! ", "？": "? ", "；": "; ", "：": ": ", "（": " (", "）": ") "}
    | dict.fromkeys("《「【", " “")
    | dict.fromkeys("》」】", "” ")
)


def vocabulary() -> dict[str, int]:
    """Kokoro's phonemes and their ids."""
    from kokoro_onnx.config import DEFAULT_VOCAB

    return DEFAULT_VOCAB


def tokens(phonemes: str) -> list[int]:
    """The token ids of a phoneme string; what the model does not know is left out."""
    known = vocabulary()
    return [known[sign] for sign in phonemes if sign in known]


def phonemes(text: str, language: str = "auto", accent: str = "en-us") -> str:
    """The phonemes of a clause; empty if nothing in it can be spoken. `accent` is "en-us" or "en-gb"."""
    text = text.translate(TO_ASCII)
    dot = reading()["link"]["zh" if re.search(rf"[{HANZI}]", text) or language == "zh" else "en"]
    text = EMAIL.sub(lambda found: f"{found[1]} @ {found[2]}".replace(".", dot), text)
    text = LINK.sub(lambda found: found[1].replace(".", dot), text)
    if re.search(rf"[{HANZI}]", text):
        text = name_units(text, "zh")  # before the units' letters are taken for English
    parts = []
    for kind, run in runs(text, language):
        run = UNREADABLE.sub(" ", read_signs(run, kind))
        if not SPEAKABLE.search(run):
            parts.append(run.translate(FROM_CHINESE_MARKS))
        elif kind == "zh":
            parts.append(_mandarin()(run))
        else:
            parts.append(_english(accent)(run))
    joined = re.sub(r"\s+", " ", " ".join(parts))
    joined = re.sub(r" +([.,!?;:…])", r"\1", joined).strip()
    known = vocabulary()
    joined = "".join(sign for sign in joined if sign in known)
    return joined if any(sign.isalpha() for sign in joined) else ""


def pieces(phonemes: str, most: int = MOST_TOKENS) -> Iterator[str]:
    """Parts of at most `most` phonemes, cut at a mark or a space where there is one."""
    while len(phonemes) > most:
        at = max(phonemes.rfind(mark, most // 2, most) for mark in ".!?;:,—")
        at = at if at > 0 else phonemes.rfind(" ", 1, most)
        at = at if at > 0 else most - 1
        yield phonemes[: at + 1].strip()
        phonemes = phonemes[at + 1 :].strip()
    if phonemes:
        yield phonemes


def warm(language: str) -> None:
    """Load what `language` ("en" or "zh") needs, so that its first clause does not wait for it."""
    if language == "zh":
        _mandarin()("你好")
    else:
        _english("en-us")("hello")


# --- grapheme to phoneme --------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _english(accent: str) -> Callable[[str], str]:
    """English text → phonemes, by espeak-ng (its library and data come inside the espeakng_loader wheel)."""
    with _LOCK:
        import logging

        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper

        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        quiet = logging.getLogger("phonemizer.quiet")  # it warns of every number that is read as several words
        quiet.setLevel(logging.ERROR)
        backend = EspeakBackend(
            accent, preserve_punctuation=True, with_stress=True, language_switch="remove-flags", logger=quiet
        )

    def spoken(text: str) -> str:
        with _LOCK:
            return " ".join(backend.phonemize([text.translate(FROM_CHINESE_MARKS)], strip=True))

    return spoken


@lru_cache(maxsize=1)
def _mandarin() -> Callable[[str], str]:
    """Chinese text → phonemes. jieba's dictionary cache goes beside our own, not into the shared temp folder."""
    with _LOCK:
        import logging

        import jieba
        from misaki.zh import ZHG2P

        from models.weights import default_folder

        jieba.setLogLevel(logging.WARNING)
        jieba.dt.tmp_dir = str(default_folder())  # pyright: ignore[reportAttributeAccessIssue]
        default_folder().mkdir(parents=True, exist_ok=True)
        jieba.initialize()

    def spoken(text: str) -> str:
        with _LOCK:
            parts = re.findall(rf"[{HANZI}]+|[^{HANZI}]+", text)
            words: list[Any] = [
                " ".join(ZHG2P.word2ipa(word) for word in jieba.cut(part)) if re.match(rf"[{HANZI}]", part) else part
                for part in parts
            ]
        return "".join(words).translate(FROM_CHINESE_MARKS).replace(chr(815), "")

    return spoken
