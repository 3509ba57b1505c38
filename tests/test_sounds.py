"""Voice activity, turns, sound tags, speakers, pitch and pictures, on the weights that come with the project."""

from pathlib import Path

import numpy as np
import pytest

from models.audio import load, resample
from models.capabilities import Waveform
from models.compact import activity, pitch, spectrum
from models.compact.speaker import SpeakerEncoder, similarity, voice_windows
from models.compact.tags import Tagger, class_names, log_mel_windows

FIXTURES = Path(__file__).parent / "fixtures"
EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"


@pytest.fixture(scope="module")
def sentence() -> np.ndarray:
    return resample(load(FIXTURES / "kokoro_en.flac"), 16_000).samples


def seconds_of_silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 16_000), np.float32)


def events_of(turns: activity.Turns, sound: np.ndarray, step: int) -> list[activity.TurnEvent]:
    return [event for start in range(0, len(sound), step) for event in turns.push(sound[start : start + step])]


# --- voice activity ---


def test_speech_is_found_between_silences(sentence):
    sound = np.concatenate([seconds_of_silence(1), sentence, seconds_of_silence(2)])
    spans = activity.speech_spans(Waveform(sound, 16_000))
    assert spans[0][0] == pytest.approx(1.1, abs=0.3)
    assert spans[-1][1] == pytest.approx(1 + len(sentence) / 16_000, abs=0.6)


def test_trim_takes_the_pauses_out_and_leaves_a_clip_without_speech(sentence):
    sound = np.concatenate([seconds_of_silence(1), sentence, seconds_of_silence(2), sentence])
    trimmed = activity.trim(Waveform(sound, 16_000)).seconds
    assert 1.4 * len(sentence) / 16_000 < trimmed < 2.2 * len(sentence) / 16_000
    silence = Waveform(seconds_of_silence(1), 16_000)
    assert activity.trim(silence) is silence


@pytest.mark.parametrize("step", [160, 700, 48_000])
def test_a_turn_begins_pauses_and_ends(sentence, step):
    sound = np.concatenate([seconds_of_silence(0.5), sentence, seconds_of_silence(2)])
    events = events_of(activity.Turns(), sound, step)
    assert [event.kind for event in events] == ["speech_start", "maybe_end", "turn_end"]
    turn = events[-1].audio
    assert turn is events[1].audio
    assert turn is not None
    assert turn.seconds == pytest.approx(len(sentence) / 16_000, abs=0.6)
    at = int(np.abs(np.correlate(sound[8000:24000], turn.samples[8000:9600], "valid")).argmax())
    assert np.array_equal(sound[8000 + at :][:1600], turn.samples[8000:9600])


def test_speech_after_a_short_pause_belongs_to_the_same_turn(sentence):
    sound = np.concatenate([sentence, seconds_of_silence(0.3), sentence, seconds_of_silence(2)])
    events = events_of(activity.Turns(pause_s=1.2), sound, 512)
    kinds = [event.kind for event in events]
    assert kinds[0] == "speech_start"
    assert kinds[-3:] == ["speech_resumed", "maybe_end", "turn_end"]
    assert kinds.count("turn_end") == 1


def test_two_conversations_do_not_meet(sentence):
    one, other = activity.Turns(), activity.Turns()
    for start in range(0, len(sentence), 1600):
        one.push(sentence[start : start + 1600])
        assert other.push(seconds_of_silence(0.1)) == []
    assert one.speaking
    assert not other.speaking


def test_int16_and_float_are_heard_alike_and_nan_is_silence(sentence):
    pcm = (np.clip(sentence, -1, 1) * 32767).astype(np.int16)
    kinds = [[e.kind for e in events_of(activity.Turns(), sound, 1600)] for sound in (sentence, pcm)]
    assert kinds[0] == kinds[1]
    assert activity.Turns().push(np.full(1600, np.nan, np.float32)) == []


def test_an_endless_turn_is_ended(sentence):
    turns = activity.Turns(longest_s=3)
    events = events_of(turns, np.tile(sentence, 3), 1600)
    assert "turn_end" in [event.kind for event in events]
    assert all(event.audio.seconds <= 3.1 for event in events if event.audio)


def test_closing_the_microphone_ends_the_turn(sentence):
    turns = activity.Turns()
    turns.push(sentence)
    assert [event.kind for event in turns.flush()] == ["turn_end"]
    assert turns.flush() == []


# --- sound tags ---


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger()


def test_the_soundscape_is_recognised(tagger):
    scores = tagger.scores(load(EXAMPLES / "harbour.ogg"))
    assert scores.shape[1] == 521
    assert {"Ocean", "Siren"} <= {name for name, _ in tagger.top(scores, 6)}
    assert {"海洋", "警笛"} <= {name for name, _ in tagger.top(scores, 6, "zh")}


def test_speech_is_recognised_at_any_rate(tagger):
    clip = load(FIXTURES / "kokoro_en.flac")
    for rate in (8_000, 16_000, 24_000):
        name, score = tagger.top(tagger.scores(resample(clip, rate)), 1)[0]
        assert (name, score > 0.8) == ("Speech", True)


def test_a_long_clip_is_scored_piece_by_piece_as_the_short_one_is(tagger):
    noise = np.random.default_rng(0).standard_normal(16_000 * 40).astype(np.float32) * 0.1
    long, short = tagger.scores(Waveform(noise, 16_000)), tagger.scores(Waveform(noise[: 16_000 * 4], 16_000))
    np.testing.assert_allclose(long[: len(short)], short, atol=1e-4)


def test_a_clip_shorter_than_a_window_has_one(tagger):
    assert tagger.scores(Waveform(np.zeros(100, np.float32), 16_000)).shape == (1, 521)


def test_windows_overlap_by_half():
    features = log_mel_windows(np.random.default_rng(0).standard_normal(32_000).astype(np.float32))
    assert features.shape[1:] == (96, 64)
    assert np.array_equal(features[0, 48:], features[1, :48])


def test_every_class_has_a_name_in_both_languages():
    for language in ("en", "zh"):
        assert len(class_names(language)) == 521
        assert all(class_names(language))
    assert class_names("zh")[0] == "说话声"


# --- speakers ---


def test_a_speaker_is_like_herself_and_unlike_others():
    encoder = SpeakerEncoder()
    names = (
        "kokoro_en",
        "kokoro_en_same_woman",
        "kokoro_en_man",
        "aishell_BAC009S0764W0121",
        "aishell_BAC009S0764W0122",
    )
    woman, again, man, mandarin, mandarin_again = (encoder.embed(load(FIXTURES / f"{name}.flac")) for name in names)
    assert np.linalg.norm(woman) == pytest.approx(1, abs=1e-5)
    assert similarity(woman, again) > 0.8
    assert similarity(mandarin, mandarin_again) > 0.8
    assert max(similarity(woman, man), similarity(woman, mandarin), similarity(man, mandarin)) < 0.65


def test_a_voice_of_silence_or_of_an_instant_is_still_a_unit_vector():
    for samples in (np.zeros(16_000, np.float32), np.full(10, 0.1, np.float32)):
        assert np.linalg.norm(SpeakerEncoder().embed(Waveform(samples, 16_000))) == pytest.approx(1, abs=1e-4)


def test_the_last_voice_window_ends_with_the_clip():
    windows = voice_windows(np.random.default_rng(0).standard_normal(16_000 * 3).astype(np.float32))
    assert windows.shape == (3, 160, 40)


# --- pitch and pictures ---


def test_the_pitch_of_a_pulse_train_is_its_rate():
    t = np.arange(32_000) / 16_000
    buzz = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 20)).astype(np.float32) * 0.2
    assert pitch.median_pitch(Waveform(buzz, 16_000)) == pytest.approx(150, abs=1)
    times, hertz = pitch.pitch_contour(Waveform(buzz, 16_000))
    assert len(times) == len(hertz) == 200


def test_silence_and_instants_have_no_pitch():
    assert pitch.median_pitch(Waveform(np.zeros(16_000, np.float32), 16_000)) is None
    assert pitch.median_pitch(Waveform(np.zeros(10, np.float32), 16_000)) is None


def test_the_mel_bank_is_librosas():
    filters = pytest.importorskip("librosa").filters
    for rate, n_fft, n_mels in ((16_000, 400, 80), (24_000, 1024, 80)):
        np.testing.assert_allclose(
            spectrum.mel_bank(rate, n_fft, n_mels), filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels).T, atol=1e-7
        )


@pytest.mark.parametrize("seconds", [0.001, 0.5, 3, 120])
def test_a_picture_has_the_same_size_for_long_and_short(seconds):
    samples = np.random.default_rng(0).standard_normal(max(1, round(24_000 * seconds))).astype(np.float32)
    picture = spectrum.log_mel(Waveform(samples, 24_000))
    assert picture.shape[0] == 80
    assert 1 <= picture.shape[1] <= 600
    assert picture.max() == 0
    assert picture.min() >= -80
