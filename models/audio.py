"""Sound in and out of files: decode and check once, mix to mono, resample, encode.

Every clip a person gives passes `load` exactly once; behind it a Waveform is finite, mono, within -1…1, at most 24 kHz
and of a bearable length. Knows nothing of models.
"""

from __future__ import annotations

import io
import subprocess
import warnings
from pathlib import Path

import numpy as np
import soundfile
import soxr

from models.capabilities import Waveform
from models.errors import UserError

SPEECH_RATE = 16_000  # Hz, what every recogniser here hears
KEPT_RATE = 24_000  # Hz, the most that is kept of a clip: speech models neither hear nor speak more
BLOCK_SAMPLES = 2**20  # a file is read in blocks, so that 30 minutes of 96 kHz stereo never stand in memory
UNKNOWN_FRAMES = 2**62  # libsndfile says about this many where a header leaves the length open
FILE_RATES = range(1_000, 768_001)  # Hz; a header that says otherwise is damaged
MIN_SECONDS = 0.3
SILENCE_DBFS = -60.0  # RMS of the loudest half second; below it there is nothing to hear

# The longest clip each use takes; recordings to understand may be long, clips to speak back may not.
MAX_SECONDS = {"understand": 3600, "speech": 300, "reference": 120}

# What libsndfile does not read (browser and phone recordings). The demuxer is forced by these first bytes:
# left to guess, ffmpeg would also open playlists, and with them other files of this machine.
FFMPEG_DEMUXERS = {
    (0, b"\x1aE\xdf\xa3"): "matroska",
    (4, b"ftyp"): "mov",
    (0, b"fLaC"): "flac",  # libsndfile refuses one that was streamed, its length unknown
    (0, b"\xff\xf1"): "aac",
    (0, b"\xff\xf9"): "aac",
    (0, b"caff"): "caf",
    (0, b"#!AMR"): "amr",
    (0, b"0&\xb2u\x8ef\xcf\x11"): "asf",
}


def load(path: str | Path | None, use: str = "speech") -> Waveform:
    """Decode and check a clip for `use` (a key of MAX_SECONDS).

    Any format of libsndfile (wav, flac, mp3, ogg, opus …) or, through ffmpeg, webm, m4a, aac, caf, amr, wma.
    Raises UserError where the file is missing, empty, not audio, too short, too long, silent or not finite.
    """
    if not path:
        raise UserError("no_audio")
    path = Path(path)
    if not path.is_file():
        raise UserError("audio_gone")
    if path.stat().st_size == 0:
        raise UserError("audio_zero_bytes")
    longest = MAX_SECONDS[use]
    try:
        waveform = _read_soundfile(path, longest)
    except (soundfile.SoundFileError, TypeError):  # TypeError: named .raw, which libsndfile takes for headerless
        waveform = _read_ffmpeg(path, longest)
    return check(waveform, use)


def check(waveform: Waveform, use: str = "speech") -> Waveform:
    """The waveform, scaled into -1…1 where a float file went over; UserError where nothing can be heard in it."""
    samples = waveform.samples
    if not np.isfinite(samples).all():
        raise UserError("audio_not_finite")
    if waveform.seconds < MIN_SECONDS:
        raise UserError("audio_too_short", seconds=waveform.seconds, least=MIN_SECONDS)
    if waveform.seconds > MAX_SECONDS[use] + 0.5:
        raise UserError("audio_too_long", seconds=waveform.seconds, most=MAX_SECONDS[use])
    if loudest_dbfs(waveform) < SILENCE_DBFS:
        raise UserError("audio_silent")
    peak = float(np.abs(samples).max())
    return Waveform(samples / np.float32(peak), waveform.rate) if peak > 1 else waveform


def loudest_dbfs(waveform: Waveform) -> float:
    """RMS of the loudest half second, in dB below full scale (a sine of full scale is -3)."""
    samples, size = waveform.samples, max(1, min(len(waveform.samples), waveform.rate // 2))
    starts = (*range(0, len(samples) - size + 1, size), len(samples) - size)
    peak = max(float(np.linalg.norm(samples[start : start + size].astype(np.float64))) for start in starts)
    return float(10 * np.log10(peak**2 / size + 1e-12))


def resample(waveform: Waveform, rate: int) -> Waveform:
    """The waveform at `rate` Hz."""
    if waveform.rate == rate:
        return waveform
    return Waveform(soxr.resample(waveform.samples, waveform.rate, rate), rate)


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """float [n] within -1…1 → int16 [n]; what lies over is clipped, never wrapped."""
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


def from_pcm(pcm: np.ndarray, rate: int) -> Waveform:
    """int16 [n] → Waveform."""
    return Waveform(pcm.astype(np.float32) / 32768, rate)


def encode_wav(pcm: np.ndarray, rate: int) -> bytes:
    """int16 [n] at `rate` Hz → a 16-bit wav file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def encode_mp3(pcm: np.ndarray, rate: int) -> bytes:
    """int16 [n] at `rate` Hz → an mp3 file of 128 kbit/s, by pydub and the ffmpeg that imageio-ffmpeg brings."""
    import imageio_ffmpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that no ffmpeg is on the PATH: the next line gives one
        from pydub import AudioSegment

    AudioSegment.converter = imageio_ffmpeg.get_ffmpeg_exe()
    segment = AudioSegment(pcm.tobytes(), frame_rate=rate, sample_width=2, channels=1)
    buffer = io.BytesIO()
    segment.export(buffer, format="mp3", bitrate="128k")
    return buffer.getvalue()


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_soundfile(path: Path, longest: float) -> Waveform:
    with soundfile.SoundFile(path) as file:
        if file.samplerate not in FILE_RATES:
            raise UserError("audio_not_audio")
        rate = min(file.samplerate, KEPT_RATE)
        resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32") if rate < file.samplerate else None
        blocks, frames = [], 0
        size = max(1, BLOCK_SAMPLES // file.channels)
        # The header's own length is only believed where it is too long: it may be unknown, or a lie.
        if longest * file.samplerate < file.frames < UNKNOWN_FRAMES:
            raise UserError("audio_too_long", seconds=file.frames / file.samplerate, most=longest)
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            frames += len(block)
            if frames > longest * file.samplerate:
                raise UserError("audio_too_long", seconds=frames / file.samplerate, most=longest)
            mono = block.mean(axis=1)
            blocks.append(resampler.resample_chunk(mono) if resampler else mono)
        if resampler:
            blocks.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        return Waveform(np.concatenate([np.zeros(0, np.float32), *blocks]), rate)


def _read_ffmpeg(path: Path, longest: float) -> Waveform:
    import imageio_ffmpeg

    with path.open("rb") as file:
        head = file.read(16)
    demuxer = next((name for (at, magic), name in FFMPEG_DEMUXERS.items() if head[at:].startswith(magic)), None)
    if not demuxer:
        raise UserError("audio_not_audio")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-protocol_whitelist", "file", "-f", demuxer]
    command += [
        "-i",
        f"file:{path}",
        "-t",
        str(longest + 1),
        "-vn",
        "-ac",
        "1",
        "-ar",
        str(KEPT_RATE),
        "-f",
        "f32le",
        "-",
    ]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=True)
    except subprocess.SubprocessError:
        raise UserError("audio_not_audio") from None
    return Waveform(np.frombuffer(done.stdout, "<f4").copy(), KEPT_RATE)
