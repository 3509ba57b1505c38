"""The sizes of a Mini-Omni checkpoint and the places of its special tokens, read from its model_config.yaml."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from litgpt.config import Config

from models.errors import UserError

LAYERS = 7  # audio tokens beside each text token
SIZES = ("block_size", "n_layer", "n_embd", "n_head", "intermediate_size")
SPECIALS = 64  # ids kept for special tokens at the end of each vocabulary
END, PAD, INPUT, ANSWER, TRANSCRIPT = range(5)  # their order there


@dataclass(frozen=True)
class Vocabulary:
    """One table holds the embeddings (and the output head) of the text ids, then of the seven audio layers' ids.

    `text` and `audio` are the sizes of one text vocabulary and of one audio layer's. Real: 152000 + 7 × 4160 rows.
    """

    text: int
    audio: int

    @property
    def rows(self) -> int:
        return self.text + LAYERS * self.audio

    @property
    def codes(self) -> int:
        """Audio ids below this are codes of the codec; the others are special."""
        return self.audio - SPECIALS

    @property
    def text_end(self) -> int:
        return self.text_special(END)

    @property
    def audio_end(self) -> int:
        return self.audio_special(END)

    def text_special(self, which: int) -> int:
        """The text id of END, PAD, INPUT, ANSWER or TRANSCRIPT."""
        return self.text - SPECIALS + which

    def audio_special(self, which: int) -> int:
        """An audio layer's id of END, PAD, INPUT or ANSWER."""
        return self.audio - SPECIALS + which

    def row(self, layer: int, audio_id: int) -> int:
        """The row of the table where an audio layer's id stands."""
        return self.text + layer * self.audio + audio_id


@dataclass(frozen=True)
class MiniOmniConfig:
    """`transformer` is litgpt's Config of the language model (many of its types are optional, its values here are not);

    `adapter_width` is the width of the sound's features; `tied` says that embeddings and output head are one table.
    """

    transformer: Any
    vocabulary: Vocabulary
    adapter_width: int
    tied: bool

    @classmethod
    def read(cls, path: Path) -> MiniOmniConfig:
        """From a model_config.yaml. Raises UserError where it is no Mini-Omni's."""
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.of(given)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError("checkpoint_wrong", file=path.name, what=why) from error

    @classmethod
    def of(cls, given: dict[str, Any]) -> MiniOmniConfig:
        """From the file's keys. Raises KeyError, TypeError or ValueError where one is missing or not supported."""
        vocabulary = Vocabulary(given["text_vocab_size"], given["audio_vocab_size"])
        if vocabulary.rows != given["padded_vocab_size"]:
            raise ValueError(f"padded_vocab_size is {given['padded_vocab_size']}, not {vocabulary.rows}")
        if given.get("asr_adapter", "llamamlp") != "llamamlp" or given.get("post_adapter"):
            raise ValueError("only the adapter llamamlp without a post_adapter is known")
        known = {field.name for field in fields(Config)}
        kept = {key: value for key, value in given.items() if key in known}
        kept["attn_bias"] = given.get("add_qkv_bias") or False
        wrong = [key for key in SIZES if not isinstance(kept.get(key), int)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: whole numbers are needed")
        config = Config(**kept)
        if config.mlp_class_name != "LLaMAMLP" or config.norm_class_name != "RMSNorm" or config.parallel_residual:
            raise ValueError("only sequential blocks of RMSNorm and LLaMAMLP are known")
        return cls(config, vocabulary, given["whisper_adapter_dim"], bool(given.get("tie_word_embeddings", True)))
