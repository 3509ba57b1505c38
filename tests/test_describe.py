"""Descriptions of voices: understood, built, and turned into styles."""

import itertools
from typing import Any

import numpy as np
import pytest

from models.compact.describe import CHOICES, VoiceDescription, build, choices, parse, to_style
from models.errors import UserError

ZH = "在新闻中，一个年轻男性兴致勃勃地说：“祝福亲爱的祖国母亲美丽富强！”他用低音调和低音量，慢慢地说出了这句话。"
EN = (
    'Delighting in a surprised tone, an adult male with low pitch and low volume comments:"One even gave my little '
    'dog a biscuit" This dialogue takes place at a leisurely pace, delivering a sense of excitement and surprise in '
    "the context."
)


def test_the_chinese_example():
    assert parse(ZH) == VoiceDescription(
        "祝福亲爱的祖国母亲美丽富强！", "zh", "male", "young", "low", "low", "slow", ("enthusiastic",), "news"
    )


def test_the_english_example():
    assert parse(EN) == VoiceDescription(
        "One even gave my little dog a biscuit",
        "en",
        "male",
        "adult",
        "low",
        "low",
        "slow",
        ("surprised", "excited"),
        None,
    )


def test_the_builder_writes_the_chinese_example():
    said = parse(ZH)
    assert build("male", "young", "low", "low", "slow", "enthusiastic", "news", said.sentence, "zh") == ZH


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("An old man says “Good night.”", "Good night."),
        ("An old man says 'I don't know, it's late.' slowly", "I don't know, it's late."),
        ("一个女人说「你好吗」", "你好吗"),
        ("一个女人说『你好吗』", "你好吗"),
        ("一个女人轻声说：你好吗", "你好吗"),
        ("A quiet woman says: see you at 3:30", "see you at 3:30"),
        ('A man says "yes" and then "I think so too".', "I think so too"),
    ],
)
def test_quotes_of_all_kinds(text: str, sentence: str):
    assert parse(text).sentence == sentence


@pytest.mark.parametrize("text", ["a young woman with a high voice", "一个年轻女性", "he says “”", "她说：", 'x: "…"'])
def test_no_sentence_is_asked_for(text: str):
    with pytest.raises(UserError) as error:
        parse(text)
    assert error.value.code == "no_sentence"
    assert "引号" in error.value.sentence("zh")


def test_empty():
    with pytest.raises(UserError, match="nothing to say"):
        parse("  \n")


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("a female voice: x", "gender", "female"),
        ("a 70-year-old woman: x", "age", "elderly"),
        ("a 20 years old man: x", "age", "young"),
        ("一个8岁的男孩说：好", "age", "child"),
        ("小女孩说：好", "gender", "female"),
        ("she whispers: x", "gender", "female"),
        ("she whispers: x", "volume", "low"),
        ("a man with a very low pitch: x", "pitch", "very low"),
        ("low pitch and volume: x", "volume", "low"),
        ("他不高兴地说：好", "emotion", ("sad",)),
        ("他快乐地说：好", "pace", None),
        ("声音洪亮的老爷爷：好", "volume", "high"),
        ("他的声音低沉：好", "pitch", "low"),
    ],
)
def test_words(text: str, field: str, value: object):
    assert getattr(parse(text), field) == value


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_builder_and_the_parser_agree(language: str):
    sentence = {"en": 'He is "sad" and very loud.', "zh": "他说“对”，很大声。"}[language]
    sets = [(None, *choices(field)) for field in CHOICES]
    pairs = list(itertools.combinations(range(len(CHOICES)), 2))
    for one, other in pairs:  # every pair of values of every two fields
        for a, b in itertools.product(sets[one], sets[other]):
            values: list[str | None] = [None] * len(CHOICES)
            values[one], values[other] = a, b
            gender, age, pitch, volume, pace, emotion, scene = values
            told = build(gender, age, pitch, volume, pace, emotion, scene, sentence, language)
            assert parse(told) == VoiceDescription(
                sentence, language, gender, age, pitch, volume, pace, (emotion,) if emotion else (), scene
            ), told


def test_seeds_give_takes():
    said = parse(EN)
    one, same, other = to_style(said, 1), to_style(said, 1), to_style(said, 2)
    assert np.array_equal(one.pack, same.pack)
    assert (one.name, one.pitch_shift, one.speed) == (same.name, same.pitch_shift, same.speed)
    assert not np.array_equal(one.pack, other.pack)


@pytest.mark.parametrize("seed", [-1, 0, 2**63])
def test_any_seed(seed: int):
    assert to_style(parse(ZH), seed).pack.shape == (510, 256)


def test_what_is_not_honoured_is_said():
    assert parse(ZH).not_honoured == ("emotion", "scene")
    assert parse("a man: x").not_honoured == ()
    assert parse(ZH).as_dict()["not_honoured"] == ["emotion", "scene"]


def test_volume_and_pace_order():
    def style(**said: Any):
        return to_style(VoiceDescription("x", "en", gender="female", **said), 3)

    assert style(volume="low").gain_db < style().gain_db < style(volume="high").gain_db
    speeds = [style(pace=pace).speed for pace in ("very slow", "slow", "normal", "fast", "very fast")]
    assert speeds == sorted(speeds)
    assert style(age="elderly").speed < style(age="young").speed
