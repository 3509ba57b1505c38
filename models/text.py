"""Every sentence a person reads, in every language of the page: assets/text/FILE.yaml holds KEY: {en: …, zh: …}.

A sentence is named "FILE.KEY"; its blanks are filled with str.format.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "text"
LANGUAGES = ("en", "zh")


@lru_cache(maxsize=1)
def sentences() -> dict[str, dict[str, str]]:
    """All sentences: {"file.key": {"en": …, "zh": …}}."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for key, translations in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            found[f"{path.stem}.{key}"] = translations
    return found


def say(name: str, language: str = "en", /, **facts: Any) -> str:
    """The sentence `name` in `language` ("en" or "zh"), its blanks filled from `facts`."""
    return sentences()[name][language if language in LANGUAGES else "en"].format(**facts)
