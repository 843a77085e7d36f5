"""A conversation of any length fits, and what bears on its question is in the prompt."""

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.assistant.context import GAP, ContextWindow, Message, turns
from quietchoir.core.assistant.idle import IdleThread
from quietchoir.core.assistant.passages import PassageRanker, by_words, split_passages
from quietchoir.core.errors import RequestError
from quietchoir.core.toolcall import ToolCall
from quietchoir.tests.fakes.server import WordTokenizer

SYSTEM = Message("system", "be brief")
FACT = "The spare key of the cabin lies under the stone frog."
QUESTION = Message("user", "Where is the spare key of the cabin?")


def filler(number: int, words: int = 9) -> str:
    """A sentence that shares no word with the fact."""
    return " ".join(f"w{number}x{place}" for place in range(words)) + "."


def talk(count: int, words: int = 9) -> list[Message]:
    """Turns about nothing."""
    return [
        message
        for number in range(count)
        for message in (
            Message("user", filler(number, words)),
            Message("assistant", f"answer {number}"),
        )
    ]


def shown(messages: Sequence[Message], budget: int) -> tuple[list[dict[str, Any]], ContextWindow]:
    """The messages that reach the template; the prompt is within the budget."""
    tokenizer = WordTokenizer()
    context = ContextWindow(tokenizer.encode)
    assert len(context.fit(messages, tokenizer, budget).tokens) <= budget
    return [dict(message) for message in tokenizer.last_messages], context


def text(messages: Sequence[dict[str, Any]]) -> str:
    return "\n".join(message["content"] for message in messages)


def test_a_conversation_within_the_budget_is_not_touched() -> None:
    messages = [SYSTEM, *talk(5), QUESTION]
    found, context = shown(messages, 100)
    assert [message["content"] for message in found] == [message.content for message in messages]
    assert context.fit(messages, WordTokenizer(), 100).left_out is None


def test_the_turn_that_answers_is_kept_and_what_was_left_out_is_told() -> None:
    messages = [SYSTEM, *talk(4), Message("user", FACT), Message("assistant", "Noted."), *talk(40)]
    found, context = shown([*messages, QUESTION], 120)
    assert FACT in text(found)
    assert found[0]["content"] == SYSTEM.content and found[-1]["content"] == QUESTION.content
    left_out = context.fit([*messages, QUESTION], WordTokenizer(), 120).left_out
    assert left_out is not None
    assert 5 not in left_out.turns and {1, 2, 3, 10, 20} <= set(left_out.turns)
    assert left_out.shown_tokens <= 120 < left_out.tokens


def test_the_turns_just_before_the_question_stay_whole() -> None:
    messages = talk(60)
    found, _ = shown([*messages, Message("user", "Thank you for all of it!")], 150)
    assert [message["content"] for message in found[-3:-1]] == [
        message.content for message in messages[-2:]
    ]


def test_an_overlong_old_message_is_excerpted_and_erases_nothing_before_it() -> None:
    early = [Message("user", FACT), Message("assistant", "Noted.")]
    pasted = " ".join(filler(number, 20) for number in range(200, 300))
    messages = [*early, Message("user", pasted), Message("assistant", "I read it."), QUESTION]
    found, context = shown(messages, 200)
    assert FACT in text(found)
    left_out = context.fit(messages, WordTokenizer(), 200).left_out
    assert left_out is not None and left_out.excerpted_turns == (2,)


@pytest.mark.parametrize("place", [0, 37, 99])
def test_an_overlong_question_is_excerpted_instead_of_refused(place: int) -> None:
    sentences = [filler(number, 20) for number in range(100)]
    sentences.insert(place, FACT)
    pasted = "\n\n".join(" ".join(sentences[start : start + 5]) for start in range(0, 101, 5))
    found, _ = shown([SYSTEM, *talk(3), Message("user", f"{pasted}\n\n{QUESTION.content}")], 200)
    assert FACT in found[-1]["content"] and found[-1]["content"].endswith(QUESTION.content)
    assert GAP in found[-1]["content"]


def exchange(number: int, result: str) -> list[Message]:
    """A call and its result."""
    return [
        Message("assistant", "", (ToolCall("look_up", {"page": number}),)),
        Message("tool", result, tool_call_id=f"c{number}", name="look_up"),
    ]


def test_many_tool_results_of_one_turn_fit_and_no_exchange_is_cut_in_two() -> None:
    steps = [exchange(number, filler(number, 12)) for number in range(45)]
    steps[7][1] = Message("tool", FACT, tool_call_id="c7", name="look_up")
    messages = [QUESTION, *(message for step in steps for message in step)]
    found, _ = shown(messages, 200)
    assert found[0]["content"] == QUESTION.content
    assert found[-1]["content"].endswith(steps[-1][1].content)  # the newest step is there
    assert FACT in text(found)
    roles = [message["role"] for message in found[1:]]
    assert roles == ["assistant", "tool"] * (len(roles) // 2)
    for call, result in zip(found[1::2], found[2::2], strict=True):
        number = call["tool_calls"][0]["function"]["arguments"]["page"]
        *told, own = result["content"].split("\n")  # a line each on steps before it
        assert own == steps[number][1].content
        for line in told:
            before, _, said = line.removeprefix(f"{GAP} look_up: page ").partition(" → ")
            assert int(before) < number and said == steps[int(before)][1].content


@pytest.mark.parametrize("together", [True, False])
def test_45_small_results_of_one_turn_are_all_told_and_stay_what_tools_said(together: bool) -> None:
    """The calls alone, as a template writes them, would take more than there is."""
    calls = [ToolCall("price", {"item": f"item {n}"}, f"c{n}") for n in range(45)]
    results = [Message("tool", f"{n}.50 EUR", (), f"c{n}", "price") for n in range(45)]
    said = (
        [Message("assistant", "I look.", tuple(calls)), *results]
        if together
        else [
            one
            for call, result in zip(calls, results, strict=True)
            for one in (Message("assistant", "", (call,)), result)
        ]
    )
    tokenizer = SpelledCalls()
    question = Message("user", "What do they cost?")
    window = ContextWindow(tokenizer.encode)
    whole = len(tokenizer.encode_chat([one.for_template() for one in (question, *said)]))
    budget = 600
    assert whole > budget
    prompt = window.fit([SYSTEM, question, *said], tokenizer, budget)
    assert len(prompt.tokens) <= budget and prompt.left_out is not None
    found = tokenizer.last_messages
    assert [one["role"] for one in found[:2]] == ["system", "user"]
    assert [one["role"] for one in found[2:]] == ["assistant", "tool"] * (len(found[2:]) // 2)
    told = "\n".join(one["content"] for one in found if one["role"] == "tool")
    for number in range(45):
        assert f"{number}.50 EUR" in told
    assert not any("EUR" in one["content"] for one in found if one["role"] != "tool")


def test_a_call_that_is_too_long_by_itself_keeps_the_ends_of_its_values() -> None:
    written = " ".join(f"line{n}" for n in range(400))
    call = ToolCall("write", {"path": "a.txt", "text": written}, "c1")
    turn = [Message("assistant", "", (call,)), Message("tool", "ok", (), "c1", "write")]
    tokenizer = SpelledCalls()
    window = ContextWindow(tokenizer.encode)
    window.fit([QUESTION, *turn], tokenizer, 200)
    [shown] = [one for one in tokenizer.last_messages if one["role"] == "assistant"]
    arguments = shown["tool_calls"][0]["function"]["arguments"]
    assert arguments["path"] == "a.txt" and GAP in arguments["text"]
    assert arguments["text"].startswith("line0 ") and arguments["text"].endswith("line399")
    assert tokenizer.last_messages[-1]["content"].startswith("ok")


def test_a_huge_tool_result_is_excerpted_for_the_question() -> None:
    page = " ".join(filler(number, 15) for number in range(60))
    half = len(page) // 2
    messages = [QUESTION, *exchange(1, f"{page[:half]} ends here. {FACT} {page[half:]}")]
    found, _ = shown(messages, 150)
    assert FACT in found[-1]["content"] and found[-1]["role"] == "tool"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=25), st.integers(90, 300))
@settings(deadline=None)
def test_whatever_its_lengths_it_fits_and_roles_take_turns(lengths: list[int], budget: int) -> None:
    messages = [SYSTEM]
    for number, length in enumerate(lengths):
        messages += [Message("user", filler(number, length)), Message("assistant", "yes, so it is")]
    found, _ = shown([*messages, QUESTION], budget)
    roles = [message["role"] for message in found]
    assert roles[0] == "system" and roles[1::2] == ["user"] * len(roles[1::2])
    assert roles[2::2] == ["assistant"] * len(roles[2::2])
    assert found[-1]["content"].endswith(QUESTION.content)
    # what is shown are the words of the messages, in their order
    said = iter(" ".join(message.content for message in [*messages, QUESTION]).split())
    assert all(word in said for word in text(found).split() if word != GAP)


class SpelledCalls(WordTokenizer):
    """Writes calls down as a template does."""

    def encode_chat(self, messages: Any, **options: Any) -> list[int]:
        shown = [
            dict(one) | {"content": f"{one['content']} {json.dumps(one.get('tool_calls', ''))}"}
            for one in messages
        ]
        return super().encode_chat(shown, **options)


def test_the_refusal_names_what_was_too_long_and_what_to_do() -> None:
    tokenizer = WordTokenizer()
    context = ContextWindow(tokenizer.encode, advice="raise engine.context, now 100")
    with pytest.raises(RequestError, match=r"system message takes 95 tokens of the 100.*raise eng"):
        context.fit([Message("system", "x " * 95), QUESTION], tokenizer, 100)
    tokenizer = SpelledCalls()
    calls = (ToolCall("look_up", {f"k{n}": f"v{n} " * 9 for n in range(20)}),)
    with pytest.raises(RequestError, match=r"newest message takes \d+ tokens in its shortest form"):
        context.fit(
            [QUESTION, Message("assistant", "", calls), Message("tool", "done")], tokenizer, 100
        )


def test_a_first_answer_before_any_question_is_a_turn_of_its_own() -> None:
    head, split = turns([SYSTEM, Message("assistant", "hello"), Message("user", "hi")])
    assert head == [SYSTEM]
    assert [[message.role for message in turn] for turn in split] == [["assistant"], ["user"]]


def test_a_conversation_of_a_system_message_alone_can_be_encoded() -> None:
    tokenizer = WordTokenizer()
    assert len(ContextWindow(tokenizer.encode).fit([SYSTEM], tokenizer, 10).tokens) == 3


def test_a_past_call_and_its_result_go_to_the_template_with_the_id_that_joins_them() -> None:
    call = ToolCall("HassTurnOn", {"name": "lamp"}, "call_1")
    assert Message("assistant", "At once.", (call,)).for_template() == {
        "role": "assistant",
        "content": "At once.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "HassTurnOn", "arguments": {"name": "lamp"}},
            }
        ],
    }
    assert Message("tool", "It is on.", (), "call_1", "HassTurnOn").for_template() == {
        "role": "tool",
        "content": "It is on.",
        "tool_call_id": "call_1",
        "name": "HassTurnOn",
    }


@given(st.text())
def test_the_passages_of_a_text_are_the_text(said: str) -> None:
    assert "".join(passage.text for passage in split_passages(said)) == said


class Synonyms:
    """Knows two meanings: of keys, and of everything else."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        about = [any(word in one for word in ("key", "locked", "unlock")) for one in texts]
        return np.array([[float(yes), float(not yes)] for yes in about], np.float32)


def test_meaning_finds_what_shares_no_word_once_it_was_computed_and_each_text_is_read_once() -> (
    None
):
    embedder, tokenizer = Synonyms(), WordTokenizer()
    ranker = PassageRanker(lambda: embedder)
    context = ContextWindow(tokenizer.encode, ranker)
    messages = [*talk(10), Message("user", FACT), Message("assistant", "Noted."), *talk(30)]
    question = Message("user", "I locked myself out!")

    def is_shown() -> bool:
        context.fit([*messages, question], tokenizer, 120)
        return FACT in text([dict(one) for one in tokenizer.last_messages])

    assert not is_shown() and embedder.read == []  # nobody waits for it
    while ranker.settle():
        pass
    read = len(embedder.read)
    assert is_shown()
    assert not ranker.settle()
    assert len(embedder.read) == read + 2  # the question, alone and with what was said before it
    assert len(set(embedder.read)) == len(embedder.read)


def test_a_word_that_a_handful_of_passages_hold_still_tells_in_a_short_talk() -> None:
    about = [f"Florence is {word} again." for word in ("ill", "here", "late", "tired")]
    said = ["Florence left her thimbles to the museum.", *about, "A hobby is good for you."]
    found = by_words("Which hobby of Florence?", [*said, *(filler(n) for n in range(40))])
    assert {0, 1, 2, 3, 4, 5} <= set(found.tolist())


def test_a_script_without_spaces_is_searched_by_its_letters() -> None:
    said = ["今天天气很好。", "备用钥匙在蓝色花盆下面。", "猫睡了一整天。", "我们去市场买梨。"]
    assert by_words("我的钥匙在哪里？", said)[0] == 1
    said = ["ฝนตกทั้งวัน", "กุญแจอยู่ใต้กระถาง", "แมวนอนหลับ"]
    assert by_words("กุญแจอยู่ที่ไหน", said)[0] == 1


def test_a_question_that_stands_before_its_text_does_not_find_itself() -> None:
    searched: list[str] = []

    class Noted(PassageRanker):
        def rank(self, questions: Sequence[str], passages: Sequence[str]) -> list[int]:
            searched.extend(passages)
            return super().rank(questions, passages)

    asked = "Which hobby of aunt Florence can be seen in an exhibition now?"
    pasted = " ".join(filler(number, 20) for number in range(60))
    tokenizer = WordTokenizer()
    ContextWindow(tokenizer.encode, Noted()).fit(
        [Message("user", f"{asked}\n\n{pasted}")], tokenizer, 110
    )
    assert searched and not any("exhibition" in passage for passage in searched)


def test_what_was_not_read_yet_loses_nothing_to_what_was() -> None:
    ranker = PassageRanker(Synonyms)
    read = [filler(number) for number in range(20)]
    ranker.rank(["anything"], read)
    assert ranker.settle() and not ranker.settle()
    found = ranker.rank(["Where is the cabin?"], [*read, FACT])  # nobody read the fact's passage
    assert found[0] == len(read)


def test_the_tokens_told_count_the_system_message_on_both_sides() -> None:
    long = Message("system", "rule " * 40)
    messages = [long, *talk(40), QUESTION]
    left_out = ContextWindow(WordTokenizer().encode).fit(messages, WordTokenizer(), 120).left_out
    assert left_out is not None
    bare = ContextWindow(WordTokenizer().encode).fit(messages[1:], WordTokenizer(), 80).left_out
    assert bare is not None and 40 <= left_out.tokens - bare.tokens <= 50


def test_work_waits_until_nobody_does_and_a_failure_ends_nothing() -> None:
    busy, done = threading.Event(), threading.Event()
    busy.set()

    def fails() -> bool:
        raise RuntimeError("a disk is full")

    def works() -> bool:
        assert not busy.is_set()
        done.set()
        return False

    quiet = IdleThread(lambda: not busy.is_set(), [fails, works])
    quiet.start()
    busy.clear()
    assert done.wait(30)
    quiet.stop()
    assert "quietchoir-idle" not in [thread.name for thread in threading.enumerate()]
