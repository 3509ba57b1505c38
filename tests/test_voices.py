"""The library of voices."""

import numpy as np
import pytest
import soundfile

from models.compact.voices import (
    FOLDER,
    LEVEL_DB,
    changed,
    closest_voice,
    default_voice,
    gender_of,
    library,
    measured,
    pack,
    style_of,
    voice,
)


def test_every_voice_has_name_licence_pack_and_a_playable_sample():
    assert len(library()) == 36
    assert len({entry.id for entry in library()}) == 36
    for entry in library():
        assert set(entry.name) == {"en", "zh"}
        assert entry.licence == "Apache-2.0"
        assert pack(entry.id).shape == (510, 256)
        assert np.isfinite(pack(entry.id)).all()
        sound, rate = soundfile.read(entry.sample)
        assert 3.0 <= len(sound) / rate <= 7.0
        assert np.abs(sound).max() > 0.1


def test_no_asset_passes_10_mb():
    assert all(path.stat().st_size < 10_000_000 for path in FOLDER.rglob("*"))


def test_packs_differ():
    assert len({pack(entry.id).tobytes() for entry in library()}) == 36


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("gender", ["female", "male"])
def test_defaults_are_what_they_say(language: str, gender: str):
    chosen = voice(default_voice(language, gender))
    assert (chosen.language, chosen.gender) == (language, gender)


@pytest.mark.parametrize("entry", library(), ids=lambda entry: entry.id)
def test_a_voice_is_closest_to_itself(entry):
    style, similarity = closest_voice(measured()[entry.id].embedding, entry.language)
    assert style.name == entry.id
    assert similarity == pytest.approx(1, abs=1e-3)


def test_the_closest_voice_speaks_the_language_of_the_text():
    for entry in library():
        for language in ("en", "zh"):
            style, similarity = closest_voice(measured()[entry.id].embedding, language)
            assert voice(style.name.split("+")[0]).language == language
            assert -1 <= similarity <= 1 + 1e-3


def test_pitch_follows_the_reference_a_little_way():
    known = measured()["am_michael"]
    up, _ = closest_voice(known.embedding, "en", known.f0_hz * 1.06)
    far, _ = closest_voice(known.embedding, "en", known.f0_hz * 4)
    assert up.pitch_shift == pytest.approx(12 * np.log2(1.06), abs=1e-3)
    assert far.pitch_shift == pytest.approx(2.0)


def test_gender_from_the_embedding():
    right = sum(gender_of(measured()[entry.id].embedding)[0] == entry.gender for entry in library())
    assert right >= 34


def test_styles_stand_at_one_level():
    style = style_of("af_heart")
    assert measured()["af_heart"].level_db + style.gain_db == pytest.approx(LEVEL_DB, abs=1e-3)


def test_changes_add_up():
    style = changed(changed(style_of("af_heart"), 1, 2, 1.1), 1, -2, 1.1)
    assert style.pitch_shift == 2
    assert style.gain_db == pytest.approx(style_of("af_heart").gain_db)
    assert style.speed == pytest.approx(1.21)


def test_blend_lies_between():
    both = (pack("af_heart") + pack("af_bella")) / 2
    assert np.allclose(style_of("af_heart+af_bella").pack, both, atol=1e-5)


def test_an_unknown_voice_is_a_key_error():
    with pytest.raises(KeyError):
        style_of("nobody")
