"""Text to ids and back, by the checkpoint's tokenizer.json. Special tokens are looked up by what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Vocabulary

from models.errors import UserError

FILE = "tokenizer.json"
UNFINISHED = "\ufffd"  # what a character decodes to while some of its bytes are still to come
MOST_BYTES = 4  # of one character: more tokens than that complete none

OPEN, CLOSE, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
AUDIO_OPEN, AUDIO, AUDIO_CLOSE = "<|audio_start|>", "<unk>", "<|audio_end|>"
SPEAKER_OPEN, SPEAKER, SPEAKER_CLOSE = "<|spk_bos|>", "<|spk|>", "<|spk_eos|>"
SPEECH_OPEN, SPEECH_CLOSE = "<|tts_bos|>", "<|tts_eos|>"
NEEDED = (OPEN, CLOSE, END_OF_TEXT, AUDIO_OPEN, AUDIO, AUDIO_CLOSE)
NEEDED += (SPEAKER_OPEN, SPEAKER, SPEAKER_CLOSE, SPEECH_OPEN, SPEECH_CLOSE)


class Markup(str):
    """Text of ours, in which special tokens are meant. In any other str they are plain characters."""


class Tokenizer:
    """Byte-pair ids of Qwen2. Stateless; a Writing decodes one answer."""

    def __init__(self, folder: Path):
        """Raises UserError("checkpoint_wrong") where tokenizer.json is damaged or lacks a token of speech."""
        try:
            text = (Path(folder) / FILE).read_text(encoding="utf-8")
            given: dict[str, Any] = json.loads(text)
            self._marked = Vocabulary.from_str(text)
            # Without them no text can be read as one, be it marked as special in the file or not.
            self._plain = Vocabulary.from_str(json.dumps({**given, "added_tokens": []}))
            self._added: dict[str, int] = {token["content"]: token["id"] for token in given["added_tokens"]}
        except Exception as error:  # the library raises bare Exceptions
            why = f"{type(error).__name__}: {error}"
            raise UserError("checkpoint_wrong", file=FILE, what=why) from error
        for token in NEEDED:  # one may stand in the vocabulary itself
            if token not in self._added and (found := self._marked.token_to_id(token)) is not None:
                self._added[token] = found
        missing = [token for token in NEEDED if token not in self._added]
        if missing:
            raise UserError("checkpoint_wrong", file=FILE, what=f"it has no {' '.join(missing)}")
        longest_first = sorted(self._added, key=len, reverse=True)
        self._specials = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self.chat_template = _chat_template(Path(folder))
        self.stops = frozenset((self.id(CLOSE), self.id(END_OF_TEXT)))  # the ids that end an answer

    def id(self, token: str) -> int:
        """The id of a special token."""
        return self._added[token]

    def encode(self, parts: Sequence[str]) -> list[int]:
        """The ids of a text in parts. Special tokens count in those that are Markup; the rest is one text with them."""
        ids: list[int] = []
        run = ""
        for part in parts:
            for piece in self._specials.split(part) if isinstance(part, Markup) else [part]:
                if isinstance(part, Markup) and piece in self._added:
                    ids += [*self._text(run), self._added[piece]]
                    run = ""
                else:
                    run += piece
        return ids + self._text(run)

    def decode(self, ids: Sequence[int], specials: bool = False) -> str:
        """With `specials`, special tokens stay in the text."""
        return self._marked.decode(list(ids), skip_special_tokens=not specials)

    def answer(self, ids: Sequence[int], upstream: bool = False) -> str:
        """The text of a whole answer; nothing after a stop or the end of its speech.

        `upstream`: as the original reads it, with other special tokens left in, and without "!" if that has id 0.
        """
        if not upstream:
            ends = [place for place, each in enumerate(ids) if each in self.stops | {self.id(SPEECH_CLOSE)}]
            return self.decode(ids[: ends[0]] if ends else ids)
        kept = [each for each in ids if each != 0]
        kept = kept[1:] if kept[:1] == [self.id(OPEN)] else kept
        kept = kept[:-1] if kept and kept[-1] in self.stops else kept
        return self.decode(kept, specials=True).replace(SPEECH_CLOSE, "")

    def _text(self, text: str) -> list[int]:
        return self._plain.encode(text, add_special_tokens=False).ids if text else []


class Writing:
    """The text of one answer as it grows, until a stop token or the end of its speech."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ends = tokenizer.stops | {tokenizer.id(SPEECH_CLOSE)}
        self._held: list[int] = []
        self.ended = False

    def push(self, text_id: int) -> str:
        """What this id adds to the text; nothing while a character is incomplete."""
        self.ended = self.ended or text_id in self._ends
        if self.ended:
            return ""
        self._held.append(text_id)
        text = self._tokenizer.decode(self._held)
        if text.endswith(UNFINISHED) and len(self._held) < MOST_BYTES:
            return ""
        self._held.clear()
        return text

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, []
        return self._tokenizer.decode(held)


def _chat_template(folder: Path) -> str | None:
    """The checkpoint's own template of a chat in text, if it brings one."""
    try:
        path = folder / "chat_template.jinja"
        if path.exists():
            return path.read_text(encoding="utf-8")
        given = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        return given if isinstance(given, str) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError("checkpoint_wrong", file="tokenizer_config.json", what=str(error)) from error
