"""Text that is still being written → clauses to speak. Pure text, English and Chinese; knows no voices or models.

The first clause is short, so that speech starts early; after it come whole sentences, cut only where one is too long to
be one short step. Length is measured in estimated seconds of speech, the one unit both languages share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from models.reading import HANZI, reading

LETTERS_PER_SECOND = 14.0  # English speech at an even pace, spaces counted
HANZI_PER_SECOND = 4.5
DIGIT_SECONDS = 0.3

SHORTEST = 0.6  # s; a clause below this is joined with the next: about three words or four Chinese characters
LIMITS = (1.2, 1.9, 3.0, 4.5)  # s of the first, second … clauses: each is made while the one before it sounds
LEFT_OVER = 1.0  # s; a sentence is not broken for a shorter rest than this
WHOLE_CHINESE = 3.6  # s; broken sooner, Mandarin loses its tones: CER 6.5 % against 2.9 % whole
BREATH = 2.8  # s; English up to this is broken only where a phrase begins
SLACK = 1.2  # a clause that ends in a mark may be this much longer than its limit
BLOCK = 400  # characters given at a time when the whole text is there

CLOSERS = "”’」』）》】\"')]*_"
MARK = re.compile(rf"[.!?…]+[{re.escape(CLOSERS)}]*|[。！？；]+[{re.escape(CLOSERS)}]*|\n+|[,;:，、：]+|—+|--+")
STRONG = re.compile(r"[.!?…。！？；\n]")
FENCE = "```"


def seconds(text: str) -> float:
    """Roughly how long `text` takes to say."""
    hanzi = len(re.findall(rf"[{HANZI}]", text))
    digits = len(re.findall(r"\d", text))
    letters = len(re.findall(r"[^\W\d]", text)) - hanzi
    spaces = text.count(" ")
    return hanzi / HANZI_PER_SECOND + digits * DIGIT_SECONDS + (letters + spaces) / LETTERS_PER_SECOND


def plain(text: str) -> str:
    """`text` without what is written for the eye: Markdown, HTML and control tokens such as <|im_end|>."""
    text = re.sub(r"<\|.{0,40}?\|>|</?[A-Za-z][^<>]{0,80}>", " ", text)
    text = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1", text)  # a link keeps its words
    text = re.sub(r"(?m)^\s{0,3}(#{1,6}\s+|>\s*|[-*+•]\s+)|^\s*[-*_=|:\s]{3,}$", "", text)
    text = re.sub(r"`+|\*\*+|~~+|(?<!\w)[*_]+(?=\w)|(?<=\w)[*_]+(?!\w)|\|", " ", text)
    return re.sub(r"\s+", " ", text).strip()


class Clauses:
    """Collects text deltas and gives back clauses as soon as they may be spoken."""

    def __init__(self) -> None:
        self._waiting = ""  # not yet known whether code
        self._buffer = ""  # prose not yet given back
        self._in_code = False
        self._given = 0

    def push(self, delta: str) -> list[str]:
        """Take more text; return the clauses that are now complete (plain text, possibly none)."""
        self._waiting += delta
        self._sift(final=False)
        return self._take(final=False)

    def finish(self) -> list[str]:
        """No more text comes: return what is left."""
        self._sift(final=True)
        return self._take(final=True)

    def _sift(self, final: bool) -> None:
        """Move prose from `_waiting` to `_buffer`; fenced code is not spoken."""
        while (at := self._waiting.find(FENCE)) >= 0:
            if not self._in_code:
                self._buffer += self._waiting[:at] + "\n"
            self._waiting = self._waiting[at + len(FENCE) :]
            self._in_code = not self._in_code
        open_end = 0 if final else len(self._waiting) - len(self._waiting.rstrip("`"))  # maybe half a fence
        cut = len(self._waiting) - open_end
        if not self._in_code:
            self._buffer += self._waiting[:cut]
        self._waiting = self._waiting[cut:]

    def _take(self, final: bool) -> list[str]:
        found = []
        while (at := _boundary(self._buffer, self._given, final)) is not None:
            raw, self._buffer = self._buffer[:at], self._buffer[at:]
            if clause := plain(raw):
                found.append(clause)
                self._given += 1
        if final or not re.search(r"\w", self._buffer):
            self._buffer = self._buffer[-4:].lstrip() if not final else ""  # an endless row of signs is not kept
        return found


def clauses(text: str) -> Iterator[str]:
    """The clauses of a whole text, made lazily: 50 000 characters cost no wait before the first."""
    splitter = Clauses()
    for start in range(0, len(text), BLOCK):
        yield from splitter.push(text[start : start + BLOCK])
    yield from splitter.finish()


def _boundary(text: str, given: int, final: bool) -> int | None:
    """Where the next clause of `text` ends after `given` earlier ones, or None while it is not known."""
    limit = LIMITS[min(given, len(LIMITS) - 1)]
    weak = None  # the last comma within the limit
    length, measured = 0.0, 0
    for mark in MARK.finditer(text):
        end = mark.end()
        if not _is_break(text, mark, final):
            continue
        length += seconds(text[measured:end])
        measured = end
        if length > limit * SLACK:
            return weak or (_soft_break(text[:end], limit) if length > _whole(text[:end]) else None) or end
        if length < SHORTEST:
            continue
        if not given or STRONG.search(mark.group()):
            return end
        weak = end
    rest = length + seconds(text[measured:])
    if rest > max(limit * SLACK + 0.2, _whole(text)):
        if at := weak or _soft_break(text, limit):
            return at
        if rest > 2 * LIMITS[-1]:  # no space, no mark: cut anywhere
            return max(1, int(len(text) * LIMITS[-1] / rest))
    return len(text) if final and text.strip() else None


def _whole(text: str) -> float:
    """How long a sentence without marks may be and still stay whole, in seconds."""
    return WHOLE_CHINESE if re.search(f"[{HANZI}]", text) else 0.0


def _is_break(text: str, mark: re.Match[str], final: bool) -> bool:
    """Whether a mark really ends a clause: not the point of 3.14, of Mr. or of a web address."""
    sign, start, end = mark.group(), mark.start(), mark.end()
    if sign[0] not in ".!?…,;:":
        return True
    if end == len(text):
        return final  # what follows decides
    before, after = text[:start][-1:], text[end]
    chinese = re.compile(rf"[{HANZI}]")
    if not (after.isspace() or chinese.match(after) or (chinese.match(before) and not after.isalnum())):
        return False
    if sign[0] == "." and len(sign.rstrip(CLOSERS)) == 1:
        word = re.split(r"[\s(\"“]", text[:start])[-1].lower()
        item = re.search(r"(?:^|\n)\s*\d{1,3}$", text[:start])  # "1." opens a list item
        return not (item or word in reading()["abbreviations"] or (len(word) == 1 and word.isalpha()))
    return True


def _soft_break(text: str, limit: float) -> int | None:
    """The best place to break a sentence without marks so that about `limit` seconds come first, or None."""
    words = "|".join(reading()["break_before"])
    places = rf"(?<=\s)(?=(?:{words})\b)|(?<=[{reading()['break_after_zh']}])(?=[{HANZI}])"
    places += rf"|(?<=[{HANZI}])(?=[{reading()['break_before_zh']}])"
    anywhere = r"(?<=\s)(?=\S)"  # breaks phrases apart ("my | little dog"), so only where a breath would be too long
    for pattern in (places, anywhere) if seconds(text) > BREATH else (places,):
        best = None
        for place in re.finditer(pattern, text, re.IGNORECASE):
            length = seconds(text[: place.start()])
            if length > limit * SLACK:
                break
            if length >= SHORTEST and seconds(text[place.start() :]) >= LEFT_OVER:
                best = place.start()
        if best:
            return best
    return None
