"""What the four tabs around one answer do with what they are given: examples, takes, own voices, references."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from models import audio
from models.capabilities import Sampling
from models.compact import describe
from models.errors import UserError
from models.voice_library import listed
from tabs import my_voices as mine
from tabs import understanding, voice_creation
from tabs.cloning import sample_of
from tabs.examples import clips, clips_for
from tabs.shared import ASSETS
from tabs.visits import visits

ISSUED = (  # the example instructions of the MiniCPM-o 2.6 model card
    "在新闻中，一个年轻男性兴致勃勃地说：“祝福亲爱的祖国母亲美丽富强！”他用低音调和低音量，慢慢地说出了这句话。",
    "Delighting in a surprised tone, an adult male with low pitch and low volume comments:"
    '"One even gave my little dog a biscuit" This dialogue takes place at a leisurely pace, '
    "delivering a sense of excitement and surprise in the context.",
)


@dataclass
class Visit:
    """What the stores read of a gr.Request."""

    session_hash: str
    request: None = None


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A clip in the upload cache."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / "voice.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(32_000) / 20), 16_000)
    return str(path)


# --- examples ---------------------------------------------------------------------------------------


def test_every_example_clip_can_be_heard_and_names_its_rights():
    listed = yaml.safe_load((ASSETS / "examples" / "examples.yaml").read_text(encoding="utf-8"))
    assert all(entry["licence"] and entry["source"] for entry in listed)
    for clip in clips().values():
        assert audio.load(clip.path).seconds > 1
        assert set(clip.title) == {"en", "zh"}


def test_each_tab_has_clips_of_its_kind():
    assert clips_for("speech") and clips_for("voice")
    assert {clip for clip, _ in understanding.EXAMPLES} <= set(clips())


def test_the_instructions_of_the_model_card_are_examples_word_for_word():
    ready = yaml.safe_load((ASSETS / "prompts" / "voice_examples.yaml").read_text(encoding="utf-8"))
    instructions = [each["instruction"] for each in ready]
    assert instructions[:2] == list(ISSUED)
    for instruction in instructions:  # each says more than its sentence
        described = describe.parse(instruction)
        assert described.gender and described.pace and described.sentence


# --- voice creation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh", "auto"])
def test_the_builder_writes_what_is_understood_again(language: str):
    sentence = "把“船”画大一点。"
    chosen = ("female", "elderly", "low", "high", "slow", "sad", "story")
    described = describe.parse(voice_creation.write(language, sentence, Visit("a"), *chosen))  # type: ignore[arg-type]
    assert described.sentence == sentence
    found = (*(getattr(described, field) for field in describe.CHOICES[:5]), *described.emotion, described.scene)
    assert found == chosen


def test_the_builder_without_any_choice_still_speaks():
    text = voice_creation.write("auto", "  ", Visit("a"), *[""] * 7)  # type: ignore[arg-type]
    assert describe.parse(text).sentence == "The train is leaving in five minutes."


def test_takes_of_a_chosen_seed_count_on_and_stay_seeds():
    assert [voice_creation.take(Sampling(seed=7), n).seed for n in range(3)] == [7, 8, 9]
    assert voice_creation.take(Sampling(seed=2**31 - 1), 1).seed == 0
    assert voice_creation.take(Sampling(), 2).seed == -1


def test_what_cannot_be_honoured_is_struck_through():
    html = voice_creation.understood_html(describe.parse(ISSUED[0]).as_dict(), "zh")
    struck = html.split('data-honoured="false">')[1:]
    assert len(struck) == 2 and "兴致勃勃" in struck[0] and "新闻" in struck[1]
    assert 'data-honoured="true"><small>性别</small>男性' in html


def test_foreign_words_of_a_description_are_only_text():
    html = voice_creation.understood_html({"gender": "<script>", "emotion": ["odd"]}, "en")
    assert "&lt;script&gt;" in html and "<script>" not in html and "odd" in html


def test_nothing_understood_says_so():
    assert "drawn freely" in voice_creation.understood_html({"sentence": "hello"}, "en")


# --- understanding ----------------------------------------------------------------------------------


def test_what_cannot_be_judged_is_shown_as_such():
    facts = {"voice": "male", "voice_probability": 0.97, "pitch_hz": 118.0, "not_judged": ["age", "health"]}
    html = understanding.findings_html({"speaker": facts}, "en")
    assert "male · 97 %" in html and "118 Hz" in html
    assert html.count('data-honoured="false"') == 2 and "does not guess" in html
    assert understanding.findings_html({}, "en") == ""


# --- cloning ----------------------------------------------------------------------------------------


def test_every_library_voice_can_be_a_reference():
    for voice in listed():
        assert audio.load(sample_of(voice["id"]), "reference").seconds > 1


@pytest.mark.parametrize(
    ("voice", "code"), [("default", "no_reference"), ("", "no_reference"), ("nobody", "voice_unknown")]
)
def test_a_missing_reference_is_said(voice: str, code: str):
    with pytest.raises(UserError) as caught:
        sample_of(voice)
    assert caught.value.code == code


# --- own voices -------------------------------------------------------------------------------------


def test_own_voices_stay_with_their_visit_and_go_with_it(clip: str):
    store, first, second = mine.MyVoices(), Visit("first"), Visit("second")
    assert store.add(first, " Grandma ", clip) == "Grandma"  # type: ignore[arg-type]
    assert store.add(first, "", clip) == "Voice 2"  # type: ignore[arg-type]
    assert store.of(first) == {"Grandma": clip, "Voice 2": clip}  # type: ignore[arg-type]
    assert store.of(second) == {}  # type: ignore[arg-type]
    visits.end(first)  # type: ignore[arg-type]
    assert store.of(first) == {} and not Path(clip).exists()  # type: ignore[arg-type]


def test_a_clip_that_cannot_serve_is_not_kept(tmp_path: Path):
    store, visit = mine.MyVoices(), Visit("bad")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    for path, code in (("", "no_audio"), (str(tmp_path / "silent.wav"), "audio_silent")):
        with pytest.raises(UserError) as caught:
            store.add(visit, "x", path)  # type: ignore[arg-type]
        assert caught.value.code == code
    assert store.of(visit) == {}  # type: ignore[arg-type]


def test_own_voices_are_bounded_but_can_be_replaced(clip: str):
    store, visit = mine.MyVoices(), Visit("many")
    for number in range(mine.MOST):
        store.add(visit, str(number), clip)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        store.add(visit, "one more", clip)  # type: ignore[arg-type]
    store.add(visit, "3", clip)  # type: ignore[arg-type]
    assert len(store.of(visit)) == mine.MOST  # type: ignore[arg-type]
