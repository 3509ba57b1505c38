"""How written signs are read aloud, in English and Chinese: money, units, marks, Chinese numbers. Knows no model."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

HANZI = "\u3400-\u9fff\uf900-\ufaff"  # for a character class
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"


@lru_cache(maxsize=1)
def reading() -> dict[str, Any]:
    """How signs are read and where sentences break (assets/prompts/reading.yaml)."""
    path = Path(__file__).resolve().parents[1] / "assets" / "prompts" / "reading.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


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
    text = name_units(text, language)
    for sign, words in data["signs"][language].items():
        text = text.replace(sign, words)
    return _chinese_numbers(text) if language == "zh" else text


def name_units(text: str, language: str) -> str:
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
