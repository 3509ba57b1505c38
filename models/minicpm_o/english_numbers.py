"""Numbers in English text as words, for a voice that was taught words: 3.14, 1,250, 22nd, 10:05, 50%, in 1999, -4."""

from __future__ import annotations

import re

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (10**3, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
ORDINALS |= {"twelve": "twelfth"}
MOST_DIGITS = 15  # a longer number is a code: it is read digit by digit
MONTHS = "january february march april may june july august september october november december".split()
BEFORE_YEAR = "in|since|year|until|till|before|after|during|early|late|around|from|of|" + "|".join(MONTHS)
NUMBER = r"\d+(?:,\d{3})+(?!\d)|\d+"

TIME = re.compile(r"(?<![\d:])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])")
YEAR = re.compile(
    rf"(?i)(\b(?:{BEFORE_YEAR})\s+(?:\d{{1,2}}(?:st|nd|rd|th)?,\s*)?)(1[1-9]\d\d|20\d\d)(?![\d,.:%]\d|\d|%)"
)
ORDINAL = re.compile(rf"({NUMBER})(?:st|nd|rd|th)\b")
PLAIN = re.compile(rf"({NUMBER})(?:\.(\d+))?")


def say_numbers(text: str) -> str:
    """`text` with its numbers in words."""
    text = TIME.sub(lambda found: f" {_time(found[1], found[2])} ", text)
    text = YEAR.sub(lambda found: found[1] + _year(int(found[2])), text)
    text = re.sub(r"(?<=\d)\s?%", " percent", text)
    text = re.sub(r"(?<![\w.)])[-−](?=\d)", "minus ", text)
    text = re.sub(r"(?<=\d)\s?[-–—~]\s?(?=\d)", " to ", text)
    text = ORDINAL.sub(lambda found: f" {_ordinal(found[1])} ", text)
    text = PLAIN.sub(lambda found: f" {_number(found[1], found[2])} ", text)
    text = re.sub(r" {2,}", " ", text)
    return re.sub(r" (?=[.,!?;:)])", "", text)


def cardinal(value: int) -> str:
    """A whole number from 0 on, below 10¹⁵, in words."""
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f"-{ONES[value % 10]}" if value % 10 else "")
    size, name = next(scale for scale in SCALES if value >= scale[0])
    rest = value % size
    joint = " and " if rest and rest < 100 else " "
    return f"{cardinal(value // size)} {name}" + (joint + cardinal(rest) if rest else "")


def _number(whole: str, fraction: str | None) -> str:
    digits = whole.replace(",", "")
    is_code = len(digits) > MOST_DIGITS or (len(digits) > 1 and digits[0] == "0")
    words = _digits(digits) if is_code else cardinal(int(digits))
    return words + (f" point {_digits(fraction)}" if fraction else "")


def _digits(digits: str) -> str:
    return " ".join(ONES[int(digit)] for digit in digits)


def _ordinal(number: str) -> str:
    words = _number(number, None)
    start = max(words.rfind(" "), words.rfind("-")) + 1
    last = words[start:]
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return words[:start] + ORDINALS.get(last, regular)


def _year(year: int) -> str:
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return cardinal(year)
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def _time(hour: str, minute: str) -> str:
    if minute == "00":
        return f"{cardinal(int(hour))} o'clock"
    return f"{cardinal(int(hour))} {'oh ' if minute[0] == '0' else ''}{cardinal(int(minute))}"
