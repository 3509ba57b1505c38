"""Every clip a person can give: read and checked, or refused with its sentence."""

import struct
import subprocess
import tracemalloc

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from models import audio
from models.capabilities import Waveform
from models.errors import UserError


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def pitch(waveform: Waveform) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform.samples * np.hanning(len(waveform.samples))))
    return float(np.argmax(spectrum) * waveform.rate / len(waveform.samples))


def refused(path, use: str = "speech") -> UserError:
    with pytest.raises(UserError) as caught:
        audio.load(path, use)
    for language in ("en", "zh"):
        assert len(caught.value.sentence(language)) > 15
    return caught.value


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_any_rate_channels_and_depth(tmp_path, rate, channels, subtype):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(rate)] * channels, 1), rate, subtype=subtype)
    clip = audio.load(tmp_path / "a.wav")
    assert clip.rate == min(rate, audio.KEPT_RATE)
    assert clip.samples.dtype == np.float32
    assert clip.samples.ndim == 1
    assert clip.seconds == pytest.approx(1, abs=0.01)
    assert pitch(clip) == pytest.approx(440, abs=2)
    assert np.sqrt((clip.samples**2).mean()) == pytest.approx(0.5 / np.sqrt(2), abs=0.01)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_formats_of_libsndfile(tmp_path, name):
    soundfile.write(tmp_path / name, tone(24_000), 24_000)
    assert pitch(audio.load(tmp_path / name)) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", "libopus"), ("a.m4a", "aac"), ("a.mp4", "aac"), ("a.aac", "aac")]
)
def test_browser_and_phone_recordings(tmp_path, name, codec):
    soundfile.write(tmp_path / "a.wav", tone(48_000, 2), 48_000)
    ffmpeg("-i", str(tmp_path / "a.wav"), "-c:a", codec, str(tmp_path / name))
    clip = audio.load(tmp_path / name)
    assert clip.seconds == pytest.approx(2, abs=0.15)
    assert pitch(clip) == pytest.approx(440, abs=2)


def test_a_browser_recording_that_is_too_long(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=130", "-c:a", "libopus", "-b:a", "16k", str(tmp_path / "a.webm"))
    assert refused(tmp_path / "a.webm", "reference").code == "audio_too_long"


def test_the_ending_of_a_name_decides_nothing(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000)
    for name in ("a.mp3", "a.txt", "a", "声音 1.wav"):
        (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
        assert pitch(audio.load(tmp_path / name)) == pytest.approx(440, abs=2)


def test_float_values_over_one_are_scaled_not_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000, peak=4.0), 16_000, subtype="FLOAT")
    clip = audio.load(tmp_path / "a.wav")
    assert np.abs(clip.samples).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(clip.samples, tone(16_000, peak=1.0), atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_values_that_are_not_sound(tmp_path, bad, rate):
    samples = tone(rate)
    samples[rate // 2] = bad
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    assert refused(tmp_path / "a.wav").code == "audio_not_finite"


def test_the_largest_floats_do_not_overflow(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000, peak=3e38), 16_000, subtype="FLOAT")
    assert np.abs(audio.load(tmp_path / "a.wav").samples).max() == pytest.approx(1)


def test_half_an_hour_is_read_within_bounds(tmp_path):
    rate, seconds = 44_100, 1800
    second = (128 + 60 * tone(rate, 1, 441)[:, None].repeat(2, 1)).astype(np.uint8).tobytes()
    with (tmp_path / "a.wav").open("wb") as file:
        size = 2 * rate * seconds
        file.write(
            struct.pack(
                "<4sI4s4sIHHIIHH4sI",
                b"RIFF",
                36 + size,
                b"WAVE",
                b"fmt ",
                16,
                1,
                2,
                rate,
                2 * rate,
                2,
                8,
                b"data",
                size,
            )
        )
        for _ in range(seconds):
            file.write(second)
    tracemalloc.start()
    clip = audio.load(tmp_path / "a.wav", "understand")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.seconds == pytest.approx(seconds, abs=0.01)
    kept = clip.samples.nbytes
    assert peak < 2.5 * kept, "the file's own 635 MB (float stereo) must never stand in memory"
    error = refused(tmp_path / "a.wav", "speech")
    assert (error.code, error.facts["seconds"]) == ("audio_too_long", seconds)
    assert "1800 s" in str(error)


def test_too_short(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000, 0.2), 16_000)
    assert refused(tmp_path / "a.wav").code == "audio_too_short"
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    assert refused(tmp_path / "a.wav").code == "audio_too_short"


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_silence(tmp_path, level):
    soundfile.write(tmp_path / "a.wav", level * tone(16_000, 2), 16_000, subtype="FLOAT")
    assert refused(tmp_path / "a.wav").code == "audio_silent"


@pytest.mark.parametrize("at", [0.0, 1.0, 1.6])
def test_a_short_word_anywhere_is_not_silence(tmp_path, at):
    samples = np.zeros(int(16_000 * 1.9), np.float32)
    word = tone(16_000, 0.25)
    samples[int(at * 16_000) :][: len(word)] = word
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    assert audio.load(tmp_path / "a.wav").seconds == pytest.approx(1.9)


def test_nothing_given_and_files_that_are_gone(tmp_path):
    assert refused(None).code == "no_audio"
    assert refused("").code == "no_audio"
    assert refused(tmp_path / "no.wav").code == "audio_gone"
    assert refused(tmp_path).code == "audio_gone"


def test_zero_bytes(tmp_path):
    (tmp_path / "a.wav").touch()
    assert refused(tmp_path / "a.wav").code == "audio_zero_bytes"


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.webm", "a.raw"])
@pytest.mark.parametrize("content", [b"%PDF-1.7\n" + b"1 0 obj\n" * 500, b"x", b"<html>" * 99, bytes(range(256)) * 99])
def test_a_renamed_document_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name).code == "audio_not_audio"


@pytest.mark.parametrize(
    "magic", [b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypM4A ", b"RIFF\xff\xff\xff\xffWAVE", b"fLaC", b"OggS"]
)
def test_the_first_bytes_of_a_recording_and_then_rubbish(tmp_path, magic):
    (tmp_path / "a.wav").write_bytes(magic + bytes(range(256)) * 50)
    assert refused(tmp_path / "a.wav").code in ("audio_not_audio", "audio_too_short")


def test_a_truncated_wav_gives_what_is_there(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000, 2), 16_000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[: 44 + 32_000])
    assert audio.load(tmp_path / "a.wav").seconds == pytest.approx(1)
    (tmp_path / "a.wav").write_bytes(whole[:30])
    assert refused(tmp_path / "a.wav").code == "audio_not_audio"


def test_a_wav_header_that_lies_about_the_length(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000, 2), 16_000)
    lying = bytearray((tmp_path / "a.wav").read_bytes())
    for claimed in (0xFFFFFFFF, 0x7FFFFFFF, 10**9):
        struct.pack_into("<I", lying, 40, claimed)
        (tmp_path / "a.wav").write_bytes(lying)
        assert audio.load(tmp_path / "a.wav").seconds == pytest.approx(2)


def test_a_wav_header_that_lies_about_the_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000, 2), 16_000)
    lying = bytearray((tmp_path / "a.wav").read_bytes())
    for claimed in (0, 1, 2_000_000_000):
        struct.pack_into("<I", lying, 24, claimed)
        (tmp_path / "a.wav").write_bytes(lying)
        assert refused(tmp_path / "a.wav").code == "audio_not_audio"


def flac_that_claims(path, frames: int) -> None:
    """Two seconds of flac whose header states another number of frames."""
    soundfile.write(path, tone(16_000, 2), 16_000)
    lying = bytearray(path.read_bytes())
    field = int.from_bytes(lying[18:26], "big")  # rate 20 bits, channels 3, depth 5, frames 36
    lying[18:26] = ((field >> 36 << 36) | frames).to_bytes(8, "big")
    path.write_bytes(lying)


def test_a_flac_header_that_does_not_know_the_length(tmp_path):
    flac_that_claims(tmp_path / "a.flac", 0)
    assert audio.load(tmp_path / "a.flac").seconds == pytest.approx(2)


def test_a_flac_header_that_lies_about_the_length(tmp_path):
    flac_that_claims(tmp_path / "a.flac", 16_000 * 60)
    assert audio.load(tmp_path / "a.flac").seconds == pytest.approx(2)
    flac_that_claims(tmp_path / "a.flac", 2**36 - 1)
    assert refused(tmp_path / "a.flac").code == "audio_too_long"


def test_a_playlist_is_never_opened(tmp_path):
    """ffmpeg would follow its entries to other files of this machine."""
    soundfile.write(tmp_path / "secret.wav", tone(16_000, 2), 16_000)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", f"file://{tmp_path / 'secret.wav'}", "#EXT-X-ENDLIST"]
    for name in ("a.m4a", "a.webm", "a.m3u8", "a.aac"):
        (tmp_path / name).write_text("\n".join(lines))
        assert refused(tmp_path / name).code == "audio_not_audio"
    (tmp_path / "b.m4a").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.wav'}\n")
    assert refused(tmp_path / "b.m4a").code == "audio_not_audio"


def test_opposite_channels_are_silence_in_mono(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16_000), -tone(16_000)], 1), 16_000, subtype="FLOAT")
    assert refused(tmp_path / "a.wav").code == "audio_silent"


def test_wav_and_mp3_round_trip(tmp_path):
    pcm = audio.to_pcm(tone(24_000, 2))
    (tmp_path / "a.wav").write_bytes(audio.encode_wav(pcm, 24_000))
    clip = audio.load(tmp_path / "a.wav")
    np.testing.assert_array_equal((clip.samples * 32768).astype(np.int16), pcm)
    (tmp_path / "a.mp3").write_bytes(audio.encode_mp3(pcm, 24_000))
    clip = audio.load(tmp_path / "a.mp3")
    assert clip.seconds == pytest.approx(2, abs=0.15)
    assert pitch(clip) == pytest.approx(440, abs=2)


def test_pcm_is_clipped_never_wrapped():
    np.testing.assert_array_equal(audio.to_pcm(np.array([-9.0, -1, 0, 1, 9])), [-32767, -32767, 0, 32767, 32767])
    assert audio.from_pcm(np.array([-32768, 16384], np.int16), 8_000).samples.tolist() == [-1, 0.5]


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_resample_keeps_pitch_and_length(rate):
    clip = audio.resample(Waveform(tone(24_000), 24_000), rate)
    assert (clip.rate, clip.samples.dtype) == (rate, np.float32)
    assert clip.seconds == pytest.approx(1, abs=0.001)
    assert pitch(clip) == pytest.approx(440, abs=2)


def test_loudness_of_a_full_scale_sine():
    assert audio.loudest_dbfs(Waveform(tone(16_000, peak=1.0), 16_000)) == pytest.approx(-3.01, abs=0.02)
