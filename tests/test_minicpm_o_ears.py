"""MiniCPM-o's ears: sound to vectors, whole or second by second, and sound that is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.errors import UserError
from models.minicpm_o.audio_encoder import (
    AudioEncoder,
    check_clip,
    log_mel,
    placeholder_counts,
    vector_count,
)
from models.minicpm_o.checkpoint import DTYPES, Checkpoint
from tests.minicpm_o_parts import (
    FOLDER,
    UNITS,
    clips,
    close,
    config,
    ears,
    model,
    prompts,
    units,
)

# --- ears -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a_2s3", "c_0s37", "d_1s0", "q2_1s75"])
def test_log_mel_and_placeholders_of_a_clip(name: str):
    mel = log_mel(clips()[name])
    assert close(mel[None], units()[f"mel.{name}"])
    assert placeholder_counts(len(clips()[name])) == UNITS[f"mel.{name}"]["placeholder_chunks"]


@pytest.mark.parametrize("samples", [480_000, 479_700, 479_100, 16_001])
def test_log_mel_is_that_of_the_clip_padded_to_30_seconds(samples: int):
    clip = np.tile(clips()["b_4s0"], 8)[:samples]
    whole = log_mel(np.pad(clip, (0, 480_000 - samples)))
    assert torch.allclose(log_mel(clip), whole[:, : -(-samples // 160)], atol=1e-6)


def test_placeholders_by_length():
    for samples, counts in UNITS["placeholder_tokens_by_samples"].items():
        assert placeholder_counts(int(samples)) == counts
    for samples, count in UNITS["placeholder_tokens_by_samples_nochunk"].items():
        assert placeholder_counts(int(samples), chunked=False) == [count]
        assert vector_count(int(samples)) == count


def test_a_clip_is_heard_as_the_original_hears_it():
    clip = clips()["a_2s3"]
    [vectors] = ears().encode([clip])
    assert close(vectors, units()["apm.a_2s3.chunk1.0"])
    [whole] = [each for each in ears().mel_steps([log_mel(clip)], chunked=False) if each is not None]
    assert close(whole, units()["apm.a_2s3.full"])


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_clips_heard_together_hear_their_padding(rows: int, monkeypatch: pytest.MonkeyPatch):
    """The original's oddity, for any number of rows in one pass; a clip heard alone differs from it."""
    monkeypatch.setattr("models.minicpm_o.audio_encoder.ROWS_AT_ONCE", {"cpu": rows})
    pieces = [clips()[name] for name in UNITS["apm.batch3"]["order"]]
    together = ears().encode(pieces)
    assert all(close(ours, units()[f"apm.batch3.{index}"]) for index, ours in enumerate(together))
    [alone] = ears().encode(pieces[2:])
    assert not close(alone, together[2])


def test_the_ears_can_be_left_between_layers():
    steps = list(ears().steps([clips()["c_0s37"], clips()["d_1s0"]]))
    assert [step is None for step in steps] == [True, True, False] * 2


def test_a_stream_forgets_when_30_seconds_are_full():
    stream, second = ears().stream(), clips()["d_1s0"]
    first = stream.push(second)
    lengths = [stream.length]
    for _ in range(30):
        last = stream.push(second)
        lengths.append(stream.length)
    assert lengths[:29] == [50 * (count + 1) for count in range(29)]
    assert lengths[29] == 50  # 1500 would be full
    stream.reset()
    assert stream.length == 0 and close(stream.push(second), first)
    assert not close(last, first)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_ears_at_other_precisions(precision: str):
    other = AudioEncoder(Checkpoint.open(FOLDER), config(), precision)
    [ours], [golden] = other.encode([clips()["a_2s3"]]), ears().encode([clips()["a_2s3"]])
    assert torch.cosine_similarity(ours.float(), golden, dim=-1).min() > 0.99
    assert other.memory_bytes() < ears().memory_bytes()
    assert ours.dtype == DTYPES[precision]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (np.zeros(0, np.float32), "no_audio"),
        (np.array([0.1, np.nan] * 500), "audio_not_finite"),
        (np.array([0.1, np.inf] * 500), "audio_not_finite"),
        (np.zeros((2, 2, 400)), "audio_not_audio"),
        (np.array(["a"] * 400), "audio_not_audio"),
    ],
)
def test_sound_that_is_none_is_refused(given: np.ndarray, code: str):
    with pytest.raises(UserError) as found:
        check_clip(given)
    assert found.value.code == code and str(found.value)


def test_sound_of_other_kinds_is_brought_into_form():
    clip = clips()["d_1s0"]
    for given in (
        (clip * 32768).astype(np.int16),
        clip.astype(np.float64),
        np.stack([clip, clip]),
        np.stack([clip, clip], 1),
        (clip * 32768 + 32768).astype(np.uint16),
    ):
        assert np.allclose(check_clip(given), clip, atol=1e-4)
        assert check_clip(given).dtype == np.float32
    assert np.abs(check_clip(clip * 32768)).max() == pytest.approx(1)


@pytest.mark.parametrize("samples", [1, 100, 160, 320, 321, 480_001, 480_500])
def test_clips_of_awkward_lengths_fill_their_places(samples: int):
    clip = np.tile(clips()["b_4s0"], 8)[:samples]
    prompt = prompts().chat([{"role": "user", "content": clip}])
    assert sum(end - start for start, end in prompt.audio_bounds) >= 1
    assert model().embed(prompt, ears().encode(prompt.pieces())).shape == (len(prompt), 64)
