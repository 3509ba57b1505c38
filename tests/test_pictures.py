"""Pictures of sounds: what is drawn is what is in the sound, bad sound draws too, and no word becomes markup."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from models.capabilities import Waveform
from tabs.likeness import likeness_html, voice_title
from tabs.pictures import (
    HEIGHT,
    WIDTH,
    chips_html,
    comparison_html,
    log_mel_html,
    pitch_html,
    similarity_html,
    tags_html,
    waveform_html,
)

RATE = 16_000


def voice(hertz: float, seconds: float = 1.0, rate: int = RATE) -> Waveform:
    """A buzz of twelve harmonics, which a pitch follower takes for a voice."""
    at = np.arange(round(seconds * rate)) / rate
    return Waveform(sum(0.2 / k * np.sin(2 * np.pi * k * hertz * at) for k in range(1, 13)).astype(np.float32), rate)


def noise(seconds: float = 1.0) -> Waveform:
    return Waveform((np.random.default_rng(0).standard_normal(round(seconds * RATE)) * 0.1).astype(np.float32), RATE)


def parsed(html: str) -> ET.Element:
    """The fragment as XML: fails where a tag is open or a sign is not escaped."""
    return ET.fromstring(f"<div>{html}</div>")


def points(element: ET.Element, name: str) -> np.ndarray:
    """The corners [n, 2] of the first path of this class."""
    path = next(p for p in element.iter("path") if p.get("class") == name)
    return np.array(re.findall(r"([\d.-]+) ([\d.-]+)", path.get("d", "")), float)


def test_a_waveform_is_high_where_it_is_loud():
    samples = np.zeros(RATE, np.float32)
    samples[RATE // 2 : RATE // 2 + 800] = 0.3  # relative to its own peak: full height
    drawn = points(parsed(waveform_html(Waveform(samples, RATE), 1.0)), "wave")
    top = drawn[drawn[:, 1].argmin()]
    assert top[1] == 0 and WIDTH * 0.49 < top[0] < WIDTH * 0.56
    assert ((drawn[:, 0] < WIDTH * 0.48) <= (drawn[:, 1] == HEIGHT / 2)).all()


def test_a_shorter_clip_takes_its_share_of_the_axis():
    assert points(parsed(waveform_html(noise(1.0), 2.0)), "wave")[:, 0].max() == pytest.approx(WIDTH / 2, abs=3)
    assert "width:50.0%" in log_mel_html(noise(1.0), 2.0)


def test_the_log_mel_shows_low_below_and_high_above():
    def ink(hertz: float) -> np.ndarray:
        at = np.arange(RATE) / RATE
        html = log_mel_html(Waveform(np.sin(2 * np.pi * hertz * at).astype(np.float32), RATE), 1.0)
        found = re.search(r"base64,([\w+/=]+)", html)
        assert found
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).getchannel("A")).mean(axis=1)

    low, high = ink(200).argmax(), ink(6000).argmax()
    assert high < 0.2 * len(ink(200)) < 0.8 * len(ink(200)) < low


def test_both_pitches_are_drawn_and_named():
    html = pitch_html(voice(120), voice(240))
    assert re.findall(r"(\d+) Hz", html) == ["120", "240"]
    drawn = parsed(html)
    assert points(drawn, "original")[:, 1].mean() > points(drawn, "copy")[:, 1].mean() + 0.3 * HEIGHT


def test_a_contour_starts_at_its_first_voiced_moment_and_breaks_where_nothing_is_voiced():
    silence = np.zeros(RATE // 2, np.float32)
    clip = Waveform(np.concatenate([silence, voice(150).samples, silence, voice(150).samples]), RATE)
    drawn = parsed(pitch_html(clip, voice(150)))
    path = next(p for p in drawn.iter("path") if p.get("class") == "original").get("d", "")
    assert path.startswith("M0.0 ") and path.count("M") == 2


def test_what_has_no_pitch_says_so():
    assert "parley-notice" in pitch_html(Waveform(np.zeros(RATE, np.float32), RATE), noise(0.05))


@pytest.mark.parametrize("seconds", [0.3, 3.0, 300.0])
@pytest.mark.parametrize("rates", [(8_000, 24_000), (24_000, 16_000)])
def test_a_comparison_of_any_length_is_whole_and_small(seconds: float, rates: tuple[int, int]):
    html = comparison_html(voice(200, seconds, rates[0]), voice(180, 1.1 * seconds, rates[1]))
    parsed(html)
    assert len(html) < 200_000 and "nan" not in html


def test_tags_stand_with_their_best_score_and_as_text():
    timeline = {"hop_s": 0.48, "names": ["Siren", "<b>x</b>"], "scores": [[0.0, 0.5, 1.0], [0.2, 0.1, 0.0]]}
    drawn = parsed(tags_html(timeline))
    assert [term.text for term in drawn.iter("dt")] == ["Siren", "<b>x</b>", None]
    assert [share.text for share in drawn.iter("small")] == ["100 %", "20 %"]
    siren = points(drawn, "area")
    assert siren[siren[:, 0] > 0.7 * WIDTH][:, 1].min() == 0
    assert siren[siren[:, 0] < 0.3 * WIDTH][:, 1].min() == HEIGHT


@pytest.mark.parametrize(("names", "scores"), [([], []), (["a"], [[]])])
def test_no_tags_draw_nothing(names: list, scores: list):
    assert tags_html({"hop_s": 0.48, "names": names, "scores": scores}) == ""


def test_similarity_stays_on_its_scale():
    assert 'aria-valuenow="0.00"' in similarity_html(-0.2)
    assert "width:100%" in similarity_html(1.0001)


def test_likeness_is_honest():
    near = likeness_html({"similarity": 0.72, "voice": "bf_emma"}, "en")
    far = likeness_html({"similarity": 0.5, "voice": "bf_emma"}, "en")
    assert "not a clone" in near and "Emma" in near
    assert "another person" in far
    assert "parley-notice" not in likeness_html({"similarity": 0.9}, "en")  # a model that clones names no voice
    assert likeness_html({}, "en") == ""


def test_a_blend_has_both_names():
    assert voice_title("af_heart+bf_emma", "en") == "Heart + Emma"
    assert voice_title("unknown", "zh") == "unknown"


def test_chips_escape_and_strike():
    chips = list(parsed(chips_html([("Age", "<old>", True), ("Scene", "news", False)])).iter("li"))
    assert [chip.get("data-honoured") for chip in chips] == ["true", "false"]
    assert "".join(chips[0].itertext()) == "Age<old>"
