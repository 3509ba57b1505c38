"""What MiniCPM-o is asked to be, and to do: the words of its model card, which its weights know."""

from __future__ import annotations

from typing import Literal

import numpy as np

from models.errors import UserError
from models.minicpm_o.prompts import NO_VOICE, Message

Revision = Literal["early", "late"]  # of upstream's code
MODES = ("audio_assistant", "audio_roleplay", "voice_cloning", "omni", "default")

DEFAULT = "You are a helpful assistant. You can accept audio and text input and output voice and text."
CLONE = {"en": "Clone the voice in the provided audio prompt.", "zh": "模仿输入音频中的声音特征。"}
OMNI = {
    "en": "You are a helpful assistant. You can accept video, audio and text input and output voice and text. ",
    "zh": "你是一个AI助手。你能接受视频，音频和文本输入并输出语音和文本。",
}
ASSISTANT = {
    "en": "As an assistant, you will speak using this voice style.",
    "zh": "作为助手，你将使用这种声音风格说话。",
}
ROLEPLAY = {
    "en": "Try to role-play the character based on the audio prompt above.",
    "zh": "假装你是上述音频中的人物，与我进行对话。",
}
LATE_ASSISTANT_EN = (
    "Use the voice in the audio prompt to synthesize new content.",
    "You are a helpful assistant with the above voice style.",
)

# The user's turn of each task. Those of UNDERSTAND stand before the clip.
MIMIC = "Please repeat each user's speech, including voice style and speech content."
READ_ALOUD = {"en": "Please read the text below.", "zh": "请朗读以下内容。"}
UNDERSTAND = {
    "transcribe": {
        "en": "Please listen to the audio snippet carefully and transcribe the content.\n",
        "zh": "请仔细听这段音频片段，并将其内容逐字记录。\n",
    },
    "speaker": {
        "en": "Based on the speaker's content, speculate on their gender, condition, age range, and health status.\n"
    },
    "summary": {
        "en": "Summarize the main content of the audio.\n",
        "zh": "请概括这段音频的主要内容。\n",  # ours, as the next: the model card has them in English only
    },
    "scene": {
        "en": "Utilize one keyword to convey the audio's content or the associated scene.\n",
        "zh": "请用一个关键词表达这段音频的内容或相关场景。\n",
    },
}


def system_prompt(
    mode: str,
    language: str = "en",
    reference: np.ndarray | None = None,
    revision: Revision = "late",
    upstream: bool = False,
) -> Message:
    """The first message of a conversation; `reference` is the voice to speak in, float32 [n] at 16 kHz.

    The "late" revision differs in the English assistant with a reference. Raises UserError for an unknown mode or
    language, and where a voice is to be cloned and none is given. `upstream`: an unknown mode is the default one.
    """
    if upstream and mode not in MODES:
        mode = "default"
    if mode not in MODES:
        raise UserError("task_unknown", task=mode, known=", ".join(MODES))
    if language not in CLONE:
        if not upstream:
            raise UserError("language_unknown", language=language)
        language = "en"
    if mode == "voice_cloning" and reference is None:
        raise UserError("no_reference")
    return Message.of({"role": "user", "content": _content(mode, language, reference, revision)})


def _content(mode: str, language: str, reference: np.ndarray | None, revision: Revision) -> list[str | np.ndarray]:
    if mode == "default":
        return [DEFAULT]
    if mode == "omni":
        if reference is None:
            return [OMNI[language]]
        return [OMNI[language] + CLONE[language], reference, ASSISTANT[language]]
    suffix = {"audio_assistant": ASSISTANT, "audio_roleplay": ROLEPLAY}.get(mode)
    if reference is None:
        assert suffix
        return [NO_VOICE, suffix[language]]
    if mode == "audio_assistant" and language == "en" and revision == "late":
        return [LATE_ASSISTANT_EN[0], reference, LATE_ASSISTANT_EN[1]]
    return [CLONE[language], reference, *([suffix[language]] if suffix else [])]
