"""Text to ids and back, by a checkpoint's tokenizer.json. A person's text never becomes a special token."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Vocabulary

from models.errors import UserError

UNFINISHED = "\ufffd"  # what a character decodes to while some of its bytes are still to come


class Tokenizer:
    """Byte-pair ids of Qwen2. Stateless; a Writing decodes one answer."""

    def __init__(self, path: Path):
        """Raises UserError("checkpoint_wrong")."""
        try:
            self._vocabulary = Vocabulary.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError("checkpoint_wrong", file=path.name, what=str(error)) from error
        self._vocabulary.encode_special_tokens = True  # "<|im_end|>" in a text is eleven characters, not an order

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids, skip_special_tokens=True)


class Writing:
    """The text of one answer as it grows."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def push(self, text_id: int) -> str:
        """What this id adds to the text; nothing while a character is incomplete."""
        self._ids.append(text_id)
        text = self._tokenizer.decode(self._ids).lstrip()
        return "" if text.endswith(UNFINISHED) else self._show(text)

    def finish(self) -> str:
        """What was held back."""
        return self._show(self._tokenizer.decode(self._ids).strip())

    def _show(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], max(text, self._shown, key=len)
        return new
