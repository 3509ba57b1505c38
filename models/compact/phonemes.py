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

from models.compact.clauses import HANZI, reading

MOST_TOKENS = 510  # Kokoro's context of 512 less the pad token at each end
_LOCK = threading.Lock()  # espeak-ng and the lazy loads hold process-wide state

EMAIL = re.compile(r"\b([\w.+-]+)@([\w-]+(?:\.[\w-]+)+)")
LINK = re.compile(r"\b(?:https?://|www\.)(?:www\.)?([\w-]+(?:\.[\w-]+)+)[^\s\u3000-\u9fff，。！？]*", re.IGNORECASE)
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
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


def runs(text: str, language: str = "auto") -> list[tuple[str, str]]:
    """Split into runs [("en" | "zh", text)]. Digits and signs go with the letters before them, or with Chinese after.

    `language` decides only for a text without letters.
    """
    fallback = "zh" if language == "zh" else "en"
    found: list[tuple[str, str]] = []
    pieces = re.findall(rf"[{HANZI}]+|[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’\- .]*|[^A-Za-zÀ-ɏ{HANZI}]+", text)
    for at, piece in enumerate(pieces):
        if re.match(rf"[{HANZI}]", piece):
            kind = "zh"
        elif re.match(r"[A-Za-zÀ-ɏ]", piece):
            kind = "en"
        else:
            following = pieces[at + 1] if at + 1 < len(pieces) else ""
            before_chinese = bool(re.match(rf"[{HANZI}]", following)) and not piece[-1].isspace()
            kind = "zh" if before_chinese or (not found and following and language == "zh") else ""
            kind = kind or (found[-1][0] if found else ("en" if following[:1].isalpha() else fallback))
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + piece)
        else:
            found.append((kind, piece))
    return found


def phonemes(text: str, language: str = "auto", accent: str = "en-us") -> str:
    """The phonemes of a clause; empty if nothing in it can be spoken. `accent` is "en-us" or "en-gb"."""
    text = text.translate(TO_ASCII)
    dot = reading()["link"]["zh" if re.search(rf"[{HANZI}]", text) or language == "zh" else "en"]
    text = EMAIL.sub(lambda found: f"{found[1]} @ {found[2]}".replace(".", dot), text)
    text = LINK.sub(lambda found: found[1].replace(".", dot), text)
    if re.search(rf"[{HANZI}]", text):
        text = _name_units(text, "zh")  # before the units' letters are taken for English
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


# --- signs and numbers ----------------------------------------------------------------------------------------------


def read_signs(text: str, language: str) -> str:
    """Money, units and signs as words of `language`; in Chinese also the numbers."""
    data = reading()
    if language == "en":
        for sign, (one, many) in data["money"]["en"].items():
            text = re.sub(
                rf"{re.escape(sign)}\s?({NUMBER})", lambda n, o=one, m=many: f"{n[1]} {o if n[1] == '1' else m}", text
            )
    else:
        for sign, word in data["money"]["zh"].items():
            text = re.sub(rf"{re.escape(sign)}\s?({NUMBER})", rf"\1{word}", text)
    text = _name_units(text, language)
    for sign, words in data["signs"][language].items():
        text = text.replace(sign, words)
    return _chinese_numbers(text) if language == "zh" else text


def _name_units(text: str, language: str) -> str:
    """Units that follow a number, by name."""
    names = reading()["units"][language]
    for unit in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<=\d)\s?{re.escape(unit)}(?![A-Za-z])", f" {names[unit]}", text)
    return text


def _chinese_numbers(text: str) -> str:
    """Arabic digits as they are read in Chinese: years digit by digit, 2个 as 两个, long numbers digit by digit."""
    digit_by_digit = str.maketrans("0123456789", "零一二三四五六七八九")
    text = re.sub(r"(?<!\d)(\d{4})(?=年)", lambda n: n[1].translate(digit_by_digit), text)
    text = re.sub(
        r"(?<!\d)(\d{1,2}):(\d{2})(?!\d)", lambda n: f"{n[1]}点" + (f"{n[2]}分" if n[2] != "00" else "整"), text
    )
    text = re.sub(rf"({NUMBER})\s?%", r"百分之\1", text)
    text = re.sub(r"(?<![\d.,])2(?=[个位只条本张次件杯天年])", "两", text)
    text = re.sub(r"(?<![\w)])-(?=\d)", "负", text)
    text = re.sub(r"(?<=\d)\s*[-—~]+\s*(?=\d)", "到", text)
    return re.sub(NUMBER, lambda n: _chinese_number(n[0].replace(",", ""), digit_by_digit), text)


def _chinese_number(number: str, digit_by_digit: dict[int, int]) -> str:
    import cn2an

    whole, _, fraction = number.partition(".")
    if len(whole) > 8 or (len(whole) > 1 and whole[0] == "0"):  # a telephone number, a code
        spoken = whole.translate(digit_by_digit)
    else:
        spoken = cn2an.an2cn(whole, "low")
    return spoken + ("点" + fraction.translate(digit_by_digit) if fraction else "")


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
