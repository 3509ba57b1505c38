"""Kokoro speaks: phonemes without its weights, sound with them (marker compact)."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from models.compact.describe import VoiceDescription, to_style
from models.compact.phonemes import phonemes, pieces, tokens
from models.compact.speak import RATE, Speaker, _finish
from models.compact.voices import changed, style_of
from models.reading import runs

# --- phonemes -------------------------------------------------------------------------------------------------------


def test_mixed_text_is_read_per_run():
    assert runs("我用iPhone 15拍照，然后open了GitHub。") == [
        ("zh", "我用"),
        ("en", "iPhone "),
        ("zh", "15拍照，然后"),
        ("en", "open"),
        ("zh", "了"),
        ("en", "GitHub。"),
    ]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("2024年3月5日", "二零二四年三月五日"),
        ("涨了20%", "涨了百分之二十"),
        ("气温25.5℃", "气温二十五点五摄氏度"),
        ("2个苹果", "两个苹果"),
        ("电话13800138000", "电话一三八零零一三八零零零"),
        ("价格是¥99", "价格是九十九元"),
        ("速度80km/h", "速度八十公里每小时"),
        ("3:30见", "三点三十分见"),
        ("有1,200人", "有一千二百人"),
    ],
)
def test_chinese_numbers_and_units(written: str, spoken: str):
    assert phonemes(written).replace(" ", "") == phonemes(spoken).replace(" ", "")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It costs $3 now", "It costs 3 dollars now"),
        ("at 25°C", "at 25 degrees Celsius"),
        ("5km away", "5 kilometres away"),
        ("you & me", "you and me"),
        ("see https://www.example.com/a?b=1", "see example dot com"),
        ("hello 😀 there", "hello there"),
        ("ｈｅｌｌｏ", "hello"),
    ],
)
def test_english_signs(written: str, spoken: str):
    assert phonemes(written) == phonemes(spoken)


def test_digits_alone_follow_the_language():
    assert phonemes("3.14", "zh") == phonemes("三点一四")
    assert phonemes("6", "en") == phonemes("six")


@pytest.mark.parametrize("text", ["", "😀😀", "!?…", "Привет", "こんにちは", "<|", "\x00\x07", "，。"])
def test_the_unspeakable_is_empty(text: str):
    assert phonemes(text) == ""


def test_accents_differ():
    assert phonemes("I can't dance after the bath", accent="en-gb") != phonemes("I can't dance after the bath")


def test_pieces_fit_and_lose_nothing():
    text = phonemes("This is a rather long sentence, which goes on and on; " * 30)
    parts = list(pieces(text))
    assert all(0 < len(tokens(part)) <= 510 for part in parts)
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert [len(part) for part in pieces("a" * 1200)] == [510, 510, 180]


def test_loud_sound_is_limited_softly():
    wave = 3 * np.sin(np.arange(RATE) / 20).astype(np.float32)
    pcm = _finish(wave, 0.1)
    assert pcm.dtype == np.int16
    assert np.abs(pcm.astype(int)).max() <= 0.981 * 32767
    assert pcm[0] == pcm[-1] == 0
    assert len(pcm) == RATE + RATE // 10


# --- sound ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    from models.catalog import KOKORO
    from models.weights import WeightStore

    store = WeightStore()
    for _ in store.fetch(KOKORO, lambda: False):
        pass
    path = store.path(KOKORO)
    assert path
    return Speaker(path)


def median_f0(pcm: np.ndarray) -> float:
    """Median pitch of the voiced frames in Hz."""
    import pyworld

    f0, _ = pyworld.dio(pcm.astype(np.float64) / 32768, RATE, f0_floor=60, f0_ceil=600)
    return float(np.median(f0[f0 > 0]))


def rms(pcm: np.ndarray) -> float:
    return float(np.sqrt((pcm.astype(np.float64) ** 2).mean()))


def whole(chunks) -> np.ndarray:
    return np.concatenate(list(chunks))


@pytest.mark.compact
@pytest.mark.parametrize(
    ("text", "voice"), [("Hello there, my old friend.", "af_heart"), ("今天天气很好。", "zf_xiaoxiao")]
)
def test_speaks(speaker: Speaker, text: str, voice: str):
    pcm = whole(speaker.speak(text, voice))
    assert pcm.dtype == np.int16
    assert 0.8 < len(pcm) / RATE < 4
    assert rms(pcm) > 500
    assert np.abs(pcm.astype(int)).max() < 32767


@pytest.mark.compact
def test_nothing_speakable_gives_nothing(speaker: Speaker):
    assert list(speaker.speak("😀 !? <|im_end|> ```x = 1```", "af_heart")) == []


@pytest.mark.compact
def test_control_tokens_are_not_spoken(speaker: Speaker):
    plain, marked = (
        whole(speaker.speak("Good morning.", "af_heart")),
        whole(speaker.speak("Good <|im_end|>morning.<|im_start|>", "af_heart")),
    )
    assert abs(len(plain) - len(marked)) < RATE // 10


@pytest.mark.compact
def test_50_000_characters_begin_at_once(speaker: Speaker):
    stream = speaker.speak("The cat sat on the mat, and it was happy there. " * 1100, "af_heart")
    chunks = list(islice(stream, 2))
    stream.close()
    assert all(len(chunk) < 4 * RATE for chunk in chunks)


@pytest.mark.compact
def test_seams_do_not_click(speaker: Speaker):
    for chunk in speaker.speak("One is here, two is there. Three went home.", "am_michael"):
        assert abs(int(chunk[0])) < 50
        assert abs(int(chunk[-1])) < 50


@pytest.mark.compact
@pytest.mark.parametrize("shift", [-4.0, 4.0])
def test_pitch_shift_moves_pitch_and_keeps_pace(speaker: Speaker, shift: float):
    text, style = "The old bridge is closed today.", style_of("am_michael")
    plain, moved = whole(speaker.speak(text, style)), whole(speaker.speak(text, changed(style, pitch_shift=shift)))
    assert 12 * np.log2(median_f0(moved) / median_f0(plain)) == pytest.approx(shift, abs=1.0)
    assert len(moved) / len(plain) == pytest.approx(1, abs=0.12)


@pytest.mark.compact
def test_a_description_is_heard(speaker: Speaker):
    """Pitch, gender, volume and pace are measurable on the sound."""

    def heard(seed: int = 5, **said: Any) -> np.ndarray:
        told = VoiceDescription("x", "en", **{"gender": "female", **said})
        return whole(speaker.speak("The old bridge is closed today.", to_style(told, seed)))

    normal = heard()
    assert median_f0(heard(pitch="low")) < median_f0(normal) < median_f0(heard(pitch="high"))
    assert median_f0(heard(gender="male")) < 0.8 * median_f0(normal)
    assert rms(heard(volume="low")) < 0.5 * rms(normal) < 0.7 * rms(heard(volume="high"))
    assert len(heard(pace="fast")) < len(normal) < len(heard(pace="slow"))
