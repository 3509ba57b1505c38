"""Pictures of sounds as HTML: waveform, log-mel, pitch contours over each other, tags over time, similarity.

Inline SVG and PNG masks that take their colours from the style sheet, so that they follow light and dark. Shapes are
stretched to the width they get; words and numbers stand beside them as HTML and are not.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from models.audio import SPEECH_RATE, resample
from models.capabilities import Waveform
from models.compact.pitch import pitch_contour
from models.compact.spectrum import log_mel
from tabs.i18n import both

WIDTH, HEIGHT = 600, 100  # of every drawing, in its own units
ENVELOPE_POINTS = 300
PITCH_POINTS = 800
MEL_BANDS, MEL_FRAMES = 64, 400
MEL_FLOOR_DB = -80.0
TIME_STEPS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800)  # s between two marks of a time axis
MOST_MARKS = 6
PITCH_MARKS = (75, 100, 150, 200, 300, 400, 600)  # Hz
MARGIN_OCTAVES, LEAST_OCTAVES = 0.15, 1.0  # height of the pitch picture, so that a monotone does not look like a melody

# The GE2E encoder's cosines measured on recordings of this project: two clips of one person, and of two people.
SAME_SPEAKER, STRANGERS = (0.87, 0.94), (0.44, 0.54)


def comparison_html(original: Waveform, copy: Waveform) -> str:
    """Original and copy side by side, on one time scale: waveform, log-mel, and both pitch contours over each other."""
    original, copy = resample(original, SPEECH_RATE), resample(copy, SPEECH_RATE)  # one frequency axis for both
    seconds = max(original.seconds, copy.seconds)
    columns = "".join(
        f'<figure data-who="{who}"><figcaption>{both(f"pictures.{who}")}<small>{clip.seconds:.1f} s</small>'
        f"</figcaption>{waveform_html(clip, seconds)}{log_mel_html(clip, seconds)}{_time_axis(seconds)}</figure>"
        for who, clip in (("original", original), ("copy", copy))
    )
    return f'<div class="parley-pair">{columns}</div>{pitch_html(original, copy)}'


def waveform_html(waveform: Waveform, seconds: float) -> str:
    """The envelope of a waveform (its own loudest sample is full height) on an axis of `seconds`."""
    samples = waveform.samples
    points = max(2, round(ENVELOPE_POINTS * min(1.0, waveform.seconds / seconds)))
    edges = np.linspace(0, len(samples), points, endpoint=False).astype(int)
    peak = float(np.abs(samples).max()) or 1.0
    high = HEIGHT / 2 * (1 - np.maximum.reduceat(samples, edges) / peak)
    low = HEIGHT / 2 * (1 - np.minimum.reduceat(samples, edges) / peak)
    x = edges / waveform.rate / seconds * WIDTH
    outline = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in outline) + "Z"
    return _drawing(f'<path class="wave" d="{path}"/>', "pictures.waveform")


def log_mel_html(waveform: Waveform, seconds: float) -> str:
    """The log-mel spectrogram, low frequencies below, on an axis of `seconds`: ink where there is energy."""
    level = 1 - log_mel(waveform, MEL_BANDS, frames=MEL_FRAMES) / MEL_FLOOR_DB  # 0…1
    alpha = (255 * level[::-1] ** 1.5).astype(np.uint8)  # the power keeps a quiet room pale
    file = io.BytesIO()
    Image.merge("LA", [Image.new("L", alpha.shape[::-1]), Image.fromarray(alpha)]).save(file, "PNG", optimize=True)
    mask = f"url(data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}) 0 0 / 100% 100%"
    width = 100 * min(1.0, waveform.seconds / seconds)
    return (
        f'<div class="mel" role="img">{_aside("pictures.log_mel")}'
        f'<i style="width:{width:.1f}%;-webkit-mask:{mask};mask:{mask}"></i></div>'
    )


def pitch_html(original: Waveform, copy: Waveform) -> str:
    """The pitch contours of both, each from its first voiced moment on, over each other; log-frequency axis in Hz."""
    contours = [_from_first_voiced(*pitch_contour(clip)) for clip in (original, copy)]
    voiced = np.concatenate([hertz[~np.isnan(hertz)] for _, hertz in contours])
    if not len(voiced):
        return f'<p class="parley-notice">{both("pictures.no_pitch")}</p>'
    low, high = np.log2(np.percentile(voiced, [1, 99])).tolist()
    spare = max(MARGIN_OCTAVES, (LEAST_OCTAVES - (high - low)) / 2)
    low, high = low - spare, high + spare
    seconds = max(0.5, *(float(times[-1]) if len(times) else 0.0 for times, _ in contours))
    lines, legend = "", ""
    for who, (times, hertz) in zip(("original", "copy"), contours, strict=True):
        y = HEIGHT * (1 - (np.log2(hertz) - low) / (high - low))
        lines += f'<path class="{who}" d="{_broken_line(times / seconds * WIDTH, np.clip(y, 0, HEIGHT))}"/>'
        middle = f"{np.nanmedian(hertz):.0f} Hz" if len(hertz) else "–"
        legend += f'<span data-who="{who}">{both(f"pictures.{who}")} <small>{middle}</small></span>'
    marks = [(mark, (np.log2(mark) - low) / (high - low)) for mark in PITCH_MARKS]
    scale = "".join(f'<b style="bottom:{100 * at:.1f}%">{mark}</b>' for mark, at in marks if 0.02 <= at <= 0.98)
    return (
        f'<figure class="parley-pitch"><figcaption>{both("pictures.pitch")}<span class="legend">{legend}</span>'
        f'</figcaption><div class="plot">{_drawing(lines, "pictures.pitch")}<div class="scale">{scale}</div></div>'
        f"{_time_axis(seconds)}</figure>"
    )


def tags_html(timeline: Mapping[str, Any]) -> str:
    """Sounds over time, a row each. `timeline`: {"hop_s": s between two scores, "names": […], "scores": [[0…1]…]}."""
    rows = [(name, np.clip(np.asarray(row, float), 0, 1)) for name, row in zip(timeline["names"], timeline["scores"])]  # noqa: B905
    rows = [(name, scores) for name, scores in rows if len(scores)]
    if not rows:
        return ""
    seconds = float(timeline["hop_s"]) * max(len(scores) for _, scores in rows)
    drawn = ""
    for name, scores in rows:
        # A score belongs to its whole hop: steps, so that a clip of one hop shows too.
        x = np.repeat(np.arange(len(scores) + 1) * float(timeline["hop_s"]) / seconds * WIDTH, 2)[1:-1]
        y = HEIGHT * (1 - np.repeat(scores, 2))
        corners = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
        area = _drawing(f'<path class="area" d="M0 {HEIGHT}L{corners}L{x[-1]:.1f} {HEIGHT}Z"/>', "pictures.tags")
        drawn += f"<dt>{escape(str(name))}<small>{100 * scores.max():.0f} %</small></dt><dd>{area}</dd>"
    return (
        f'<figure class="parley-tags"><figcaption>{both("pictures.tags")}</figcaption>'
        f"<dl>{drawn}<dt></dt><dd>{_time_axis(seconds)}</dd></dl></figure>"
    )


def similarity_html(similarity: float, remark: str = "") -> str:
    """How alike two voices are (cosine of speaker embeddings), on a scale with strangers and same person marked."""
    shown = min(max(float(similarity), 0.0), 1.0)
    bands = "".join(
        f'<span class="band" style="left:{100 * low:.0f}%;width:{100 * (high - low):.0f}%"></span>'
        f'<span class="name" style="left:{50 * (low + high):.0f}%">{both(f"pictures.{name}")}</span>'
        for name, (low, high) in (("strangers", STRANGERS), ("same_speaker", SAME_SPEAKER))
    )
    note = f'<p class="parley-notice">{escape(remark)}</p>' if remark else ""
    return (
        f'<figure class="parley-similarity"><figcaption>{both("pictures.similarity")}<strong>{shown:.2f}</strong>'
        f'</figcaption><div class="meter" role="meter" aria-valuemin="0" aria-valuemax="1" aria-valuenow="{shown:.2f}">'
        f'<i style="width:{100 * shown:.0f}%"></i>{bands}</div>{note}</figure>'
    )


def chips_html(chips: Sequence[tuple[str, str, bool]]) -> str:
    """Facts as chips: (what, or nothing; value; honoured); one that could not be honoured is struck through."""
    items = ""
    for what, value, honoured in chips:
        name = f"<small>{escape(what)}</small>" if what else ""
        items += f'<li data-honoured="{str(honoured).lower()}">{name}{escape(value)}</li>'
    return f'<ul class="parley-chips">{items}</ul>' if items else ""


# --- parts ------------------------------------------------------------------------------------------------------------


def _drawing(shapes: str, name: str) -> str:
    """An SVG as wide as its place, named for those who cannot see it."""
    return (
        f'<div class="drawing" role="img">{_aside(name)}<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" '
        f'aria-hidden="true">{shapes}</svg></div>'
    )


def _aside(name: str) -> str:
    return f'<span class="parley-unseen">{both(name)}</span>'


def _time_axis(seconds: float) -> str:
    step = next((step for step in TIME_STEPS if seconds / step <= MOST_MARKS), TIME_STEPS[-1])
    marks = np.arange(0, seconds + 1e-6, step)
    shown = "".join(
        f'<b style="left:{100 * mark / seconds:.1f}%">{_clock(mark)}</b>' for mark in marks if mark <= 0.94 * seconds
    )
    return f'<div class="axis" aria-hidden="true">{shown}</div>'


def _clock(seconds: float) -> str:
    """ "2.5 s", or "12:30" from a minute on."""
    return f"{seconds:g} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _from_first_voiced(times: np.ndarray, hertz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A contour without the unvoiced ends, its time counted from its start, thinned to what can be seen."""
    voiced = np.flatnonzero(~np.isnan(hertz))
    if not len(voiced):
        return times[:0], hertz[:0]
    step = -(-(voiced[-1] + 1 - voiced[0]) // PITCH_POINTS)
    kept = slice(voiced[0], voiced[-1] + 1, step)
    return times[kept] - times[voiced[0]], hertz[kept]


def _broken_line(x: np.ndarray, y: np.ndarray) -> str:
    """An SVG path through the points, with a gap at every NaN."""
    path, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if np.isnan(b):
            pen = "M"
        else:
            path.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
    return "".join(path)
