"""What a person may be told when something goes wrong: what happened, what was kept, what to do next.

The sentences stand in assets/text/errors.yaml, in every language of the page, under the error's code.
"""

from __future__ import annotations

from typing import Any

from models.text import say


class UserError(Exception):
    """An error with a sentence for the person. `code` names the sentence, `facts` fill its blanks."""

    def __init__(self, code: str, /, **facts: Any):
        super().__init__(code)
        self.code, self.facts = code, facts

    def sentence(self, language: str = "en") -> str:
        """The sentence in "en" or "zh"."""
        return say(f"errors.{self.code}", language, **self.facts)

    def __str__(self) -> str:
        return self.sentence()
