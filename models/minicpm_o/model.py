"""A MiniCPM-o 2.6 in memory: its parts, loaded from one folder. No state of any conversation is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from models.errors import UserError
from models.minicpm_o.audio_encoder import AudioEncoder
from models.minicpm_o.checkpoint import Checkpoint, memory_bytes
from models.minicpm_o.config import MiniCPMOConfig
from models.minicpm_o.dvae import Dvae
from models.minicpm_o.language import LanguageModel
from models.minicpm_o.prompts import Prompts
from models.minicpm_o.speaking import SpeechParts
from models.minicpm_o.speech_decoder import SpeechDecoder, expected
from models.minicpm_o.speech_text import SpeechText
from models.minicpm_o.tokenizer import Tokenizer
from models.minicpm_o.vocoder import Vocoder

VOCODER = Path("assets") / "Vocos.pt"


@dataclass
class Parts:
    """`ears` and `speech` are None where they were not loaded. `precision` is the language model's."""

    precision: str
    device: str
    config: MiniCPMOConfig
    tokenizer: Tokenizer
    prompts: Prompts
    language: LanguageModel
    ears: AudioEncoder | None
    speech: SpeechParts | None

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        speech = self.speech
        spoken = sum(map(memory_bytes, (speech.decoder, speech.dvae, speech.vocoder))) if speech else 0
        return self.language.memory_bytes() + (self.ears.memory_bytes() if self.ears else 0) + spoken


def load(
    folder: Path, precision: str, device: str, hears: bool = True, speaks: bool = True, attention: str = "sdpa"
) -> Parts:
    """Read a checkpoint's folder. `precision` is that of the language model: "fp32", "bf16", "int8" or "int4".

    Raises UserError("checkpoint_wrong") that names the file and what is off in it.
    """
    config, checkpoint, tokenizer = MiniCPMOConfig.read(folder), Checkpoint.open(folder), Tokenizer(folder)
    return Parts(
        precision=precision,
        device=device,
        config=config,
        tokenizer=tokenizer,
        prompts=Prompts(tokenizer, config),
        language=LanguageModel(checkpoint, config, precision, device, attention),
        ears=AudioEncoder(checkpoint, config, beside(precision, device), device) if hears else None,
        speech=load_speech(folder, config, checkpoint, beside(precision, device), device) if speaks else None,
    )


def load_speech(
    folder: Path, config: MiniCPMOConfig, checkpoint: Checkpoint, precision: str, device: str
) -> SpeechParts:
    """What speaks. Raises UserError("checkpoint_wrong")."""
    try:
        inner = Dvae.expected({key.removeprefix("tts.dvae."): shape for key, shape in checkpoint.shapes.items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError("checkpoint_wrong", file="the checkpoint", what=f"tts.dvae: {error}") from error
    checkpoint.check("tts.", expected(config.tts) | {f"dvae.{key}": shape for key, shape in inner.items()})
    decoder = SpeechDecoder(config.tts, checkpoint.tensors("tts."), precision, device)
    dvae = Dvae(checkpoint.tensors("tts.dvae."), device)
    text = SpeechText(folder, config.tts.streaming_text_reserved_len)
    return SpeechParts(decoder, dvae, Vocoder.read(folder / VOCODER, device), text)


def beside(precision: str, device: str) -> str:
    """The precision of the smaller networks beside a language model of `precision`."""
    if precision in ("int8", "int4"):
        return "int8" if device == "cpu" else "bf16"
    return precision


def usual(device: str | None, precision: str | None) -> tuple[str, str]:
    """Device and precision, where one is not given: the GPU and bf16, else the CPU and float32."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, precision or ("bf16" if device.startswith("cuda") else "fp32")
