"""MiniCPM-o's language model: golden answers, caches that are kept and shared, and how tokens are drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from models.errors import UserError
from models.minicpm_o.checkpoint import Checkpoint
from models.minicpm_o.language import KVCache, LanguageModel
from models.minicpm_o.prompts import CLOSED, FIRST_TURN, Clip, Prompts
from models.minicpm_o.sampling import Decoding, Sampler
from models.minicpm_o.tokenizer import Markup, Tokenizer
from tests.minicpm_o_parts import (
    CASES,
    CHATS,
    FOLDER,
    GOLDEN,
    SESSIONS,
    answer,
    clips,
    close,
    config,
    ears,
    greedy,
    messages,
    model,
    prompts,
    read,
    say,
    sound,
)

# --- the language model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHATS)
def test_golden_answers(name: str):
    """Vectors, embeddings, first logits, speaker and tokens of every chat of the original."""
    case, golden = CASES[name], load_file(GOLDEN / f"case_{name}.safetensors")
    args, stops = case["chat_args"], prompts().tokenizer.stops
    batch = isinstance(case["msgs"][0], list)
    joined_by = "" if args.get("omni_input") else "\n"
    given = case["msgs"] if batch else [case["msgs"]]
    written = [prompts().chat(messages(m), args["use_tts_template"], joined_by, upstream=True) for m in given]
    pieces = [prompt.pieces(upstream=True) for prompt in written]
    heard: Iterator[Tensor] = iter(ears().encode([piece for row in pieces for piece in row]))
    vectors = [[next(heard) for _ in row] for row in pieces]
    for row, its in enumerate(vectors):
        for place, each in enumerate(its):
            assert close(each, golden[f"audio_embeds.{row}.{place}"])
    embedded = [model().embed(prompt, its) for prompt, its in zip(written, vectors, strict=True)]
    if "inputs_embeds" in golden:
        assert close(embedded[0][None], golden["inputs_embeds"])
    elif not batch:
        assert close(embedded[0][None, ::8], golden["inputs_embeds_every8th_pos"])
    cache = KVCache()
    for _ in model().prefill(written[0], vectors[0], cache):
        pass
    assert close(model().logits(cache), golden["llm_first_logits"])
    if "spk_embeds" in golden:
        assert cache.speaker is not None and close(cache.speaker, golden["spk_embeds"])
    decoding = Decoding.upstream(args["sampling"], **{key: args[key] for key in args if key not in ("sampling",)})
    torch.manual_seed(11)
    if batch or decoding.beams > 1:
        ours = model().search(embedded, decoding, stops, args["max_new_tokens"])
    else:
        sampler = Sampler(decoding, upstream=True)
        ours = [list(model().generate(cache, sampler, stops, args["max_new_tokens"]))]
    for row, ids in enumerate(ours):
        wanted = golden["llm_output_ids"][row].tolist()
        assert ids == wanted[: len(ids)] and not any(wanted[len(ids) :])
        text = case["answer_text"][row] if batch else case["answer_text"]
        assert prompts().tokenizer.answer(ids, upstream=True) == text


def test_long_prompts_are_read_in_slices():
    prompt = prompts().chat([say("hello there " * 105)])
    cache = KVCache()
    assert 512 < len(prompt) < 768
    assert list(model().prefill(prompt, [], cache)) == [256, 512, len(prompt)]
    assert cache.length == len(prompt) == cache.layers.get_seq_length()
    network = model().network
    with torch.inference_mode():
        whole = network.model(inputs_embeds=model().embed(prompt)[None]).last_hidden_state[0]
    assert cache.hidden is not None and close(cache.hidden, whole[-1])
    assert cache.speaker is not None and close(cache.speaker[0], whole[prompt.speaker])


def test_the_second_turn_reads_only_what_is_new():
    first = messages([{"role": "user", "content": ["Listen.", {"audio": "b_4s0"}]}])
    opened = prompts().chat(first)
    cache = read(opened)
    said = answer(cache)
    second = prompts().chat([*first, say(prompts().tokenizer.answer(said), "assistant"), say("and now?")])
    rest = cache.resume(second)
    assert len(rest) < len(second) - 100 and rest.clips == [] and rest.audio_bounds == []
    assert rest.ids == second.ids[-len(rest) :] and cache.length == len(second) - len(rest)
    afresh = read(second)
    read(rest, cache)
    assert cache.hidden is not None and afresh.hidden is not None and cache.keys == afresh.keys
    assert close(cache.hidden, afresh.hidden)
    assert answer(cache) == answer(afresh)


def test_asking_again_reads_the_end_again():
    prompt = prompts().chat(messages([{"role": "user", "content": [{"audio": "d_1s0"}]}]))
    cache = read(prompt)
    said, speaker = answer(cache), cache.speaker
    rest = cache.resume(prompt)
    assert rest.speaker == 0 and len(rest) == 3
    read(rest, cache)
    assert answer(cache) == said and cache.speaker is not None and speaker is not None and close(cache.speaker, speaker)


def test_another_clip_in_the_same_place_is_heard_anew():
    ask = [{"role": "user", "content": [{"audio": "b_4s0"}]}], [{"role": "user", "content": [{"audio": "d_1s0"}]}]
    one, other = (prompts().chat(messages(given)) for given in ask)
    cache = read(one)
    rest = cache.resume(other)
    assert len(rest.clips) == 1 and rest.spans[0][0] == 0
    read(rest, cache)
    assert answer(cache) == answer(read(other))


def test_a_stopped_answer_leaves_its_cache_usable():
    prompt = prompts().chat([say("hello")])
    cache = read(prompt)
    talking = model().generate(cache, greedy(), (), 50)
    some = [next(talking) for _ in range(5)]
    talking.close()
    assert cache.length == len(prompt) + 4 and cache.keys[-4:] == some[:4]  # the last one given is not in it
    cache.truncate(len(prompt))
    assert cache.hidden is None
    read(cache.resume(prompt), cache)
    assert list(model().generate(cache, greedy(), (), 5)) == some


def test_a_step_that_fails_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch):
    prompt = prompts().chat([say("hello")])
    cache = read(prompt)
    said = answer(read(prompt))

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model().network.model.layers[1], "forward", fail)
        with pytest.raises(MemoryError):
            model().read(7, cache)
    assert cache.length == len(prompt) and {layer.get_seq_length() for layer in cache.layers.layers} == {len(prompt)}
    assert answer(cache) == said


def test_a_special_token_may_stand_in_the_vocabulary_itself(tmp_path: Path):
    given = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    kept = [token for token in given["added_tokens"] if token["content"] != "<unk>"]
    words = {**given["model"]["vocab"], "<unk>": 408}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**given, "added_tokens": kept, "model": {**given["model"], "vocab": words}}), encoding="utf-8"
    )
    other = Prompts(Tokenizer(tmp_path), config())
    asked = [{"role": "user", "content": ["<unk>", clips()["c_0s37"]]}]
    assert other.chat(asked).ids == prompts().chat(asked).ids


@pytest.mark.parametrize("lost", ["<|spk_bos|>", "<|tts_eos|>", "<|im_end|>"])
def test_a_tokenizer_that_lacks_a_token_is_refused(tmp_path: Path, lost: str):
    given = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    given["added_tokens"] = [token for token in given["added_tokens"] if token["content"] != lost]
    (tmp_path / "tokenizer.json").write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(UserError) as found:
        Tokenizer(tmp_path)
    assert lost in str(found.value)


def test_several_answers_in_turns_are_the_same_as_alone():
    asked = [prompts().chat([say(text)]) for text in ("hello", "what is this?", "你好")]
    asked.append(prompts().chat(messages([{"role": "user", "content": [{"audio": "a_2s3"}]}])))
    drawn = Decoding()
    alone = [answer(read(prompt), Sampler(drawn, seed)) for seed, prompt in enumerate(asked)]
    assert len({tuple(ids) for ids in alone}) > 1
    caches = [KVCache() for _ in asked]
    reading = [
        model().prefill(prompt, ears().encode(prompt.pieces()), cache)
        for prompt, cache in zip(asked, caches, strict=True)
    ]
    while any([next(each, None) for each in reading]):
        pass
    stops = prompts().tokenizer.stops
    talking = [model().generate(cache, Sampler(drawn, seed), stops, 24) for seed, cache in enumerate(caches)]
    together: list[list[int]] = [[] for _ in asked]
    for _ in range(25):
        for ids, each in zip(together, talking, strict=True):
            ids.extend(next(([one] for one in each), []))
    assert together == alone


def test_an_answer_ends_where_the_positions_do(monkeypatch: pytest.MonkeyPatch):
    prompt = prompts().chat([say("hello")])
    monkeypatch.setattr(model(), "most_positions", len(prompt) + 3)
    assert len(list(model().generate(read(prompt), greedy(), (), 50))) == 3


def test_a_search_can_be_cancelled():
    asked: list[int] = []
    embedded = model().embed(prompts().chat([say("hello")]))
    found = model().search(
        [embedded], Decoding(sample=False, beams=3), [408], 40, lambda: asked.append(1) or len(asked) > 4
    )
    assert len(found[0]) <= 5


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_say_about_the_same(precision: str):
    prompt = prompts().chat([say("hello there, how are you?")])
    ours, golden = model(precision).logits(read(prompt, precision=precision)), model().logits(read(prompt))
    assert torch.cosine_similarity(ours.float(), golden, dim=0) > 0.99
    assert model(precision).memory_bytes() < model().memory_bytes() * {"bf16": 0.51, "int8": 0.3}[precision]
    ids = list(model(precision).generate(read(prompt, precision=precision), greedy(), prompts().tokenizer.stops, 24))
    assert ids and all(0 <= each < 459 for each in ids)


def test_int4_is_not_for_a_cpu():
    with pytest.raises(UserError) as found:
        LanguageModel(Checkpoint.open(FOLDER), config(), "int4")
    assert found.value.code == "precision_unknown"


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_upstreams_settings():
    assert Decoding.upstream(True, temperature=0.3, num_beams=3) == Decoding(temperature=0.3)
    search = Decoding.upstream(False, temperature=0.3)
    assert (search.beams, search.repetition_penalty, search.greedy) == (3, 1.2, True)
    assert Decoding.upstream(False, num_beams=1).beams == 1


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 1.1}, {"top_k": -1}, {"repetition_penalty": 0}, {"temperature": float("nan")}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]):
    with pytest.raises(UserError) as found:
        Decoding(**wrong)  # pyright: ignore[reportArgumentType]
    assert found.value.code == "setting_out_of_range" and next(iter(wrong)) in str(found.value)


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 1.0, "top_k": 0}, {"temperature": 1.5, "top_p": 0.3}])
def test_ours_draws_with_the_same_chances_as_transformers(settings: dict[str, float]):
    decoding = Decoding(**settings)  # pyright: ignore[reportArgumentType]
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 3
    torch.manual_seed(0)
    counts = [torch.zeros(50), torch.zeros(50)]
    for count, sampler in zip(counts, (Sampler(decoding, 5), Sampler(decoding, upstream=True)), strict=True):
        for _ in range(3000):
            count[sampler(logits, [1, 2])] += 1
    assert (counts[0] - counts[1]).abs().max() / 3000 < 0.06
    penalised = RepetitionPenaltyLogitsProcessor(1.05)(torch.tensor([[1, 2]]), logits[None])
    possible = decoding.warpers()(torch.empty(1, 0), penalised)[0] > -torch.inf
    assert not any(count[~possible].any() for count in counts)


def test_a_seed_gives_the_same_answer_and_a_fresh_one_is_told():
    prompt = prompts().chat([say("hello")])
    hot = Decoding(temperature=3.0)
    fresh = Sampler(hot)
    first = answer(read(prompt), fresh)
    assert answer(read(prompt), Sampler(hot, fresh.seed)) == first
    assert len({tuple(answer(read(prompt), Sampler(hot, seed))) for seed in range(4)}) > 1


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}, {"sample": False}])
def test_without_chance_the_best_is_taken(settings: dict[str, Any]):
    logits = torch.tensor([0.0, 2.0, 1.9])
    assert Sampler(Decoding(**settings), 1)(logits, ()) == 1
    assert Sampler(Decoding(**settings, repetition_penalty=1.2), 1)(logits, (1, 1)) == 2


# --- a session, heard as it is spoken ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SESSIONS)
def test_golden_sessions_are_heard_and_read(name: str):
    """Ids, sound vectors and the length of the cache after every piece of the original's first turns."""
    golden = load_file(GOLDEN / f"case_{name}.safetensors")
    events = CASES[name]["events"]
    cache, stream = KVCache(), ears().stream()
    for index, event in enumerate(events):
        if event["op"] != "prefill":
            break
        content = [Clip(sound(part), 0) if isinstance(part, dict) else part for part in event["msg"]["content"]]
        opening = [FIRST_TURN] if index < 2 else []
        prompt = prompts().build([*opening, *content, *([Markup(CLOSED)] if index == 0 else [])])
        assert prompt.ids == event["ids"] and prompt.text == event["prompt"]
        heard = [stream.push(clip.samples) for clip in prompt.clips]
        if heard:
            assert close(torch.cat(heard), golden[f"ev{index}.audio_embeds"])
        for _ in model().prefill(prompt, heard, cache):
            pass
        assert cache.length == event["kv_len_after"]
        if index == 0:
            stream.reset()
        elif "apm_kv_len_after" in event:
            assert stream.length == event["apm_kv_len_after"]
