"""The sizes of a MiniCPM-o 2.6 checkpoint, read from its config.json, as the configurations of its parts."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import Qwen2Config, WhisperConfig

from models.errors import UserError

FILE = "config.json"
MODEL_TYPE = "minicpmo"
PIECE_SECONDS = 30  # the audio encoder hears so much at once
ENCODER_FRAMES_PER_SECOND = 50
LLM_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
AUDIO_SIZES = ("num_mel_bins", "max_source_positions", "d_model", "encoder_layers")
AUDIO_SIZES += ("encoder_attention_heads", "encoder_ffn_dim")


@dataclass(frozen=True)
class SpeechConfig:
    """The speech decoder. `llm_dim` is the width of the language model; token ids are of the speech text's wordpieces.

    The defaults are the real model's: its config.json names little more than llm_dim.
    """

    llm_dim: int
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_hidden_layers: int = 20
    max_position_embeddings: int = 4096
    num_audio_tokens: int = 626
    num_text_tokens: int = 21178
    num_mel_bins: int = 100
    num_vq: int = 4
    spk_emb_token_id: int = 21143
    num_spk_embs: int = 1
    audio_bos_token_id: int = 21132
    text_eos_token_id: int = 21133
    streaming_text_reserved_len: int = 300
    top_p: float = 0.7
    top_k: int = 20
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, given: dict[str, Any]) -> SpeechConfig:
        """From the file's tts_config; keys that the speech decoder does not use are left out."""
        known = {field.name for field in fields(cls)}
        config = cls(**{key: value for key, value in given.items() if key in known})
        for name in ("llm_dim", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"):
            _whole(name, getattr(config, name))
        return config


@dataclass(frozen=True)
class MiniCPMOConfig:
    """`audio_pool_step` encoder frames become one vector; frames within `audio_chunk_seconds` hear each other.

    `chunk_input`: the vectors of a clip stand in a prompt in groups, one a second.
    """

    llm: Qwen2Config
    audio: WhisperConfig
    tts: SpeechConfig
    audio_pool_step: int
    audio_chunk_seconds: float
    chunk_input: bool

    @property
    def llm_width(self) -> int:
        assert self.llm.hidden_size
        return self.llm.hidden_size

    @property
    def most_positions(self) -> int:
        """Of a prompt and its answer."""
        assert self.llm.max_position_embeddings
        return self.llm.max_position_embeddings

    @property
    def audio_chunk_frames(self) -> int:
        """Encoder frames that see each other: those of one second."""
        return int(self.audio_chunk_seconds * ENCODER_FRAMES_PER_SECOND)

    @classmethod
    def read(cls, folder: Path) -> MiniCPMOConfig:
        """From a checkpoint's folder. Raises UserError("checkpoint_wrong") where config.json is no MiniCPM-o's."""
        try:
            return cls.of(json.loads((Path(folder) / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError("checkpoint_wrong", file=FILE, what="there is no such file") from error
        except Exception as error:  # transformers checks values with errors of its own kinds
            why = f"{type(error).__name__}: {error}".split("\n")[0]
            raise UserError("checkpoint_wrong", file=FILE, what=why) from error

    @classmethod
    def of(cls, given: dict[str, Any]) -> MiniCPMOConfig:
        """From the file's keys. Raises KeyError, TypeError or ValueError where one is missing or not supported."""
        if given.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type is {given.get('model_type')!r}, not {MODEL_TYPE!r}")
        for name in LLM_SIZES:
            _whole(name, given[name])
        for name in AUDIO_SIZES:
            _whole(f"audio_config.{name}", given["audio_config"].get(name, getattr(WhisperConfig(), name)))
        if given["tts_config"]["llm_dim"] != given["hidden_size"]:
            raise ValueError("tts_config.llm_dim is not the language model's hidden_size")
        return cls(
            llm=_llm(given),
            audio=WhisperConfig(**_own(given["audio_config"]), attn_implementation="sdpa"),
            tts=SpeechConfig.of(given["tts_config"]),
            audio_pool_step=_whole("audio_pool_step", given.get("audio_pool_step", 2)),
            audio_chunk_seconds=float(given.get("audio_chunk_length", 1.0)),
            chunk_input=bool(given.get("chunk_input", True)),
        )


def _llm(given: dict[str, Any]) -> Qwen2Config:
    if given.get("use_sliding_window"):
        raise ValueError("a sliding window of attention is not known")
    if given.get("tie_word_embeddings"):
        raise ValueError("a head that is tied to the embeddings is not known")
    return Qwen2Config(
        **{name: given[name] for name in LLM_SIZES},
        hidden_act=given.get("hidden_act", "silu"),
        max_position_embeddings=given.get("max_position_embeddings", 32768),
        rms_norm_eps=given.get("rms_norm_eps", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": given.get("rope_theta", 1e6)},
        tie_word_embeddings=False,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _own(audio: dict[str, Any]) -> dict[str, Any]:
    """Without what the library would take for orders of its own."""
    return {key: value for key, value in audio.items() if not key.startswith(("_", "attn_", "torch_dtype"))}


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value
