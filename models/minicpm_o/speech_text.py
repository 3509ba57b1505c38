"""Text on its way to the speech decoder: what is read for a sign or a number, wordpieces, and where they stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError
from models.minicpm_o.english_numbers import BEFORE_YEAR, MONTHS, say_numbers
from models.reading import HANZI, read_signs, runs

FOLDER = "assets/chattts_tokenizer"
START, SPEAKER, END, PAD, SOUND = "[Stts]", "[spk_emb]", "[Etts]", "[PAD]", "[Ptts]"
SENTENCE_ENDS = (".", "。", "!", "?", "！", "？")

ENGLISH_DIGITS = dict(enumerate("zero one two three four five six seven eight nine".split()))
CHINESE_DIGITS = dict(enumerate("零一二三四五六七八九"))

# What the decoder's voice can be given: letters, numbers, marks of both scripts. All else would be read as "unknown".
UNSPEAKABLE = re.compile(rf"[^A-Za-zÀ-ɏ\d{HANZI}\s.,!?;:'\"()\-—…，。！？；：、“”‘’（）《》]|[-—=_]{{3,}}")
FULL_WIDTH = str.maketrans({chr(full): chr(full - 0xFEE0) for full in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF5B))})
CHINESE = re.compile(rf"[{HANZI}]")
DATE = re.compile(r"(?<![\d-])([12]\d{3})-(0?[1-9]|1[0-2])-(0?[1-9]|[12]\d|3[01])(?![\d-])")
# What follows such a character does not change how the text before it is read,
SETTLED = re.compile(rf"\s|[{HANZI}](?=[^\n])|[，。！？；：、]")
# unless a number or a sign waits for its unit, or a word for its year.
OPEN_END = re.compile(rf"(?i)(?:\d[.,:]?|[$€£¥￥#+\-−%°/]|\b(?:{BEFORE_YEAR}))\s*$")


class SpeechText:
    """The wordpieces of a checkpoint (BERT's Chinese ones, with ChatTTS's own tokens)."""

    def __init__(self, folder: Path, reserved: int = 300):
        """`folder`: the checkpoint's. `reserved`: slots for text. Raises UserError("checkpoint_wrong")."""
        from transformers import BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]  (made on demand)

        self._reserved = reserved
        try:
            self._tokenizer = BertTokenizerFast.from_pretrained(str(Path(folder) / FOLDER), local_files_only=True)
            known = self._tokenizer.get_vocab()
            self._start, self._speaker, self._end, self._pad, self._sound = (
                known[token] for token in (START, SPEAKER, END, PAD, SOUND)
            )
        except KeyError as error:
            raise UserError("checkpoint_wrong", file=FOLDER, what=f"{error} is not among its tokens") from error
        except Exception as error:  # missing and broken files raise errors of the library's own kinds
            raise UserError("checkpoint_wrong", file=FOLDER, what=str(error).split("\n")[0]) from error

    def ids(self, text: str) -> list[int]:
        """The wordpieces of a text. The decoder's own tokens are known by name, as upstream: see Reading."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def layout(self, text: str) -> tuple[list[int], int]:
        """What stands at the positions of the speech decoder up to [Ptts], and how many wordpieces are the text's.

        [Stts], [spk_emb], text, [Etts], [PAD] up to the slots reserved, [Ptts]. A text without room for its end is cut
        and has none.
        """
        own = self.ids(text)
        if len(own) >= self._reserved:
            # Upstream makes text of the pieces that are left and encodes it again; it is cut once more to be safe.
            left = self._tokenizer.decode(own[: self._reserved])
            own = self.ids(left)[: self._reserved]
        count = len(own)
        rest = ([self._end] + [self._pad] * self._reserved)[: self._reserved - count]
        return [self._start, self._speaker, *own, *rest, self._sound], count

    def decode(self, ids: Sequence[int]) -> str:
        """Wordpieces → text; where a word was cut, its rest begins with "##"."""
        return self._tokenizer.decode(list(ids))


class Reading:
    """Text as it is written, piece by piece → text as it is spoken. State of one answer.

    Numbers, signs, units and money become words of the language around them; Markdown and what has no sound go. What
    may still grow (a number, a word) is held back until the next piece. Brackets go too: no text makes a token.

    Upstream instead spells every digit by itself from the second piece on, in the language that the first two are
    mostly written in, and drops asterisks.
    """

    def __init__(self, upstream: bool = False, before: str = ""):
        """`before`: text that was read already, which tells the language."""
        self._upstream = upstream
        self._waiting = ""
        self._seen = before  # upstream: of the first two pieces
        self._chosen = ""  # upstream's language
        self._language = "zh" if before and language_of(before) == "chinese" else "auto"  # of the last words

    def push(self, piece: str) -> str:
        """More text → what may be spoken now, possibly nothing."""
        if self._upstream:
            return self._spell(piece)
        self._waiting += piece
        for settled in reversed(list(SETTLED.finditer(self._waiting))):
            head = self._waiting[: settled.end()]
            if not OPEN_END.search(head):
                self._waiting = self._waiting[len(head) :]
                return self._speak(head)
        return ""

    def finish(self) -> str:
        """No more text: the rest."""
        rest, self._waiting = self._waiting, ""
        return self._speak(rest)

    def _speak(self, text: str) -> str:
        if language := re.findall(rf"[{HANZI}]|[A-Za-z]", text):
            self._language = "en" if language[-1].isascii() else "zh"
        return spoken(text, self._language)

    def _spell(self, piece: str) -> str:
        if not self._chosen:
            first = not self._seen
            self._seen += piece
            if first:
                return piece.replace("*", "")
            self._chosen = language_of(self._seen)
        return spell_digits(piece, self._chosen).replace("*", "")


def spoken(text: str, language: str = "auto") -> str:
    """`text` with all that is not letters in words, and without what cannot be said. Spaces at its ends are kept.

    `language` ("en", "zh", "auto") is for a text without letters.
    """
    text = _ascii_digits(text)
    text = re.sub(r"(?m)^\s{0,3}(?:#{1,6}\s+|>\s*|[-•+]\s+)|[*`_~|\[\]]+", " ", text)
    text = re.sub(r"(?<=\w)[^\S\n]*\n\s*", lambda found: "。" if CHINESE.match(text[found.start() - 1]) else ". ", text)
    said = []
    for kind, run in runs(text, language):
        run = DATE.sub(r"\1年\2月\3日" if kind == "zh" else _english_date, run)
        run = read_signs(run, kind)
        said.append(say_numbers(run) if kind == "en" else run)
    return re.sub(r"\s+", " ", UNSPEAKABLE.sub(" ", "".join(said)))


def language_of(text: str) -> str:
    """Upstream's guess: "chinese" unless there are more Latin letters than Chinese characters."""
    chinese, latin = len(re.findall(r"[\u4e00-\u9fff]", text)), len(re.findall(r"[A-Za-z]", text))
    return "chinese" if chinese >= latin else "english"


def spell_digits(text: str, language: str | None = None) -> str:
    """Upstream's numbers: digit by digit, decimals too; digits other than ASCII's are lost."""
    if (language or language_of(text)) == "chinese":
        digits, joint = CHINESE_DIGITS, ""
    else:
        digits, joint = ENGLISH_DIGITS, " "
    return re.sub(r"\d+", lambda run: joint.join(digits[int(d)] for d in run[0] if d.isascii()), text)


def sentence_end(text: str) -> str:
    """Upstream's mark of a sentence's end in `text`, or "". A first full stop after a digit counts for none."""
    for mark in SENTENCE_ENDS:
        at = text.find(mark)
        if at >= 0 and not (mark == "." and at > 0 and text[at - 1].isdigit()):
            return mark
    return ""


def _ascii_digits(text: str) -> str:
    """Digits of any script, and full-width letters, as ASCII."""
    text = text.translate(FULL_WIDTH)
    return re.sub(r"\d", lambda digit: str(int(digit[0])), text)


def _english_date(date: re.Match[str]) -> str:
    return f"{MONTHS[int(date[2]) - 1].title()} {int(date[3])}, {date[1]}"
