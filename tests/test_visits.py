"""What a visit leaves behind: nothing of its own, and nobody else's."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tabs.visits import Visits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def visit(name: str):
    return SimpleNamespace(session_hash=name)


def test_files_go_with_the_visit_and_not_before(cache):
    visits, clip = Visits(), cache / "clip.wav"
    clip.write_bytes(b"x")
    visits.keep(visit("a"), str(clip), None)
    visits.end(visit("b"))
    assert clip.exists()
    visits.end(visit("a"))
    assert not clip.exists()


def test_a_clip_that_two_gave_stays_until_both_have_gone(cache):
    visits, clip = Visits(), cache / "clip.wav"
    clip.write_bytes(b"x")
    visits.keep(visit("a"), str(clip))
    visits.keep(visit("b"), str(clip))
    visits.end(visit("a"))
    assert clip.exists()
    visits.end(visit("b"))
    assert not clip.exists()


def test_only_the_cache_is_cleaned(cache, tmp_path):
    visits, example = Visits(), tmp_path / "example.ogg"
    example.write_bytes(b"x")
    visits.keep(visit("a"), str(example), str(cache / ".." / "example.ogg"))
    visits.end(visit("a"))
    assert example.exists()


def test_endings_run_once(cache):
    visits, ended = Visits(), []
    visits.at_end(visit("a"), lambda: ended.append("a"))
    visits.end(visit("a"))
    visits.end(visit("a"))
    assert ended == ["a"]
