"""Text → clauses to speak."""

import time

import pytest

from models.compact.clauses import LIMITS, SLACK, Clauses, clauses, plain, seconds


def streamed(text: str, size: int = 1) -> list[str]:
    """The clauses of a text that arrives `size` characters at a time."""
    splitter = Clauses()
    found = [clause for at in range(0, len(text), size) for clause in splitter.push(text[at : at + size])]
    return found + splitter.finish()


def letters(text: str) -> str:
    return "".join(sign for sign in text if sign.isalnum())


def test_first_clause_is_early_then_sentences_are_whole():
    text = "Well, of course I can, and I will gladly do so. The weather is fine today. Shall we go out?"
    assert streamed(text) == [
        "Well, of course I can,",
        "and I will gladly do so.",
        "The weather is fine today.",
        "Shall we go out?",
    ]


def test_chinese_first_clause_is_early():
    assert streamed("今天天气很好，我们去公园吧！你觉得呢？") == ["今天天气很好，", "我们去公园吧！", "你觉得呢？"]


def test_the_first_clause_does_not_wait_for_the_end():
    splitter = Clauses()
    assert splitter.push("Of course I can, ") == ["Of course I can,"]


def test_a_first_sentence_without_marks_is_broken_between_words():
    first, *rest = clauses("The quick brown fox jumps over the lazy dog near the river bank today.")
    assert seconds(first) <= LIMITS[0] * SLACK
    assert rest
    assert " ".join([first, *rest]).startswith("The quick brown fox jumps over")


@pytest.mark.parametrize("whole", ["3.14", "Mr. Smith", "https://a.example.com/x?y=1.5", "1,000", "3:30", "J. Smith"])
def test_marks_inside_words_do_not_break(whole: str):
    text = f"Well, here we are. So look at {whole} now."
    assert any(whole in clause for clause in streamed(text))
    assert " ".join(streamed(text)) == text


def test_short_sentences_are_joined():
    assert streamed("Hi. Sure! I can help you.") == ["Hi. Sure! I can help you."]


def test_code_and_markdown_are_not_spoken():
    text = "# Title\n\n* **Bold** point here\n```python\nprint('secret')\n```\nSee [the page](http://x.example/y).<|im_end|>"
    for size in (1, 3, 1000):
        spoken = " ".join(streamed(text, size))
        assert spoken == "Title Bold point here See the page."


def test_plain_keeps_arithmetic_and_names():
    assert plain("2 < 3, snake_case and a <b>bold</b> word") == "2 < 3, snake_case and a bold word"


@pytest.mark.parametrize(
    "text", ["", "   \n", "!!! ??? …", "，。！", "***", "```only code```", "<|im_end|><|im_start|>"]
)
def test_nothing_to_say_gives_nothing_speakable(text: str):
    assert letters("".join(streamed(text))) == ""


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_no_letter_is_lost_or_doubled(size: int):
    text = "First of all, 今天天气很好，我们去 the park 吧。 Then — after 3.5 hours — we went home; it was late! " * 5
    assert letters("".join(streamed(text, size))) == letters(text)


@pytest.mark.parametrize(
    "text", ["The cat sat on the mat, and was happy. " * 1300, "好" * 50000, "a" * 50000, ",;!" * 17000]
)
def test_long_texts_are_lazy_and_every_clause_is_a_short_step(text: str):
    started = time.process_time()
    first = next(clauses(text), "")
    assert time.process_time() - started < 0.2
    found = list(clauses(text))
    assert time.process_time() - started < 5
    assert letters("".join(found)) == letters(text)
    assert first == (found[0] if found else "")
    assert all(seconds(clause) <= 2 * LIMITS[-1] for clause in found)
