"""The six tasks of Mini-Omni, and the columns of ids that ask for each.

A prompt has a column per position: seven audio ids (as rows of the table) over one text id. The task is told by the
last column alone. Knows nothing of words: text comes as ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from models.mini_omni.config import ANSWER, END, INPUT, LAYERS, PAD, TRANSCRIPT, Vocabulary


class Task(str, Enum):
    """What goes in (A: speech, T: text) and what comes out (T1: …, T2: a text answer, A2: speech and text)."""

    A1A2 = "A1A2"  # speech → speech and text
    A1A2_BATCH = "A1A2_batch"  # the same in two rows: the first gives the sound, the second better text for both
    A1T1 = "A1T1"  # speech → its transcript
    A1T2 = "A1T2"  # speech → a text answer
    T1A2 = "T1A2"  # text → speech and text
    T1T2 = "T1T2"  # text → a text answer

    @property
    def speaks(self) -> bool:
        return self in (Task.A1A2, Task.A1A2_BATCH, Task.T1A2)

    @property
    def hears(self) -> bool:
        return self.value.startswith("A1")


@dataclass(frozen=True)
class Prompt:
    """`columns` int64 [8, positions] are all but the last; `last` int64 [8, rows] is the last, where the rows differ.

    In a prompt of speech, positions 1…`features` take the sound's features in place of their audio embeddings.
    """

    task: Task
    columns: Tensor
    last: Tensor
    features: int = 0

    @property
    def length(self) -> int:
        return self.columns.shape[1] + 1

    @property
    def ids(self) -> Tensor:
        """Int64 [8, rows, length]: the whole, as the model was trained on it."""
        rows = self.last.shape[1]
        return torch.cat([self.columns[:, None].expand(-1, rows, -1), self.last[:, :, None]], 2)


def speech_prompt(task: Task, vocabulary: Vocabulary, features: int) -> Prompt:
    """Ask for an answer to (or the transcript of) sound that has so many features."""
    special = [INPUT, *[PAD] * features, END]
    text = [vocabulary.text_special(which) for which in special]
    audio = [[vocabulary.audio_special(which) for which in special]] * LAYERS
    return _prompt(task, vocabulary, audio, text, features)


def text_prompt(task: Task, vocabulary: Vocabulary, ids: Sequence[int]) -> Prompt:
    """Ask for an answer to a text."""
    text = [vocabulary.text_special(INPUT), *ids, vocabulary.text_special(END)]
    audio = [[vocabulary.audio_special(PAD)] * len(text)] * LAYERS
    return _prompt(task, vocabulary, audio, text, 0)


def _prompt(task: Task, vocabulary: Vocabulary, audio: list[list[int]], text: list[int], features: int) -> Prompt:
    rows = [ANSWER, PAD] if task is Task.A1A2_BATCH else [ANSWER if task.speaks else PAD]
    ends = [[vocabulary.row(layer, vocabulary.audio_special(which)) for which in rows] for layer in range(LAYERS)]
    end = vocabulary.text_special(TRANSCRIPT if task is Task.A1T1 else ANSWER)
    columns = [[vocabulary.row(layer, each) for each in ids] for layer, ids in enumerate(audio)]
    return Prompt(task, torch.tensor([*columns, text]), torch.tensor([*ends, [end] * len(rows)]), features)
