from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st

from slmx.errors import SlmxError, UsageError
from slmx.eval.prompts import build, build_all
from slmx.presets import ModePreset, get
from slmx.records import Passage, Question
from slmx.text import fill


class Words:
    """A window whose tokens are the words, and that counts its calls."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.calls = 0

    def count(self, prompts: Sequence[str]) -> list[int]:
        self.calls += 1
        return [len(prompt.split()) for prompt in prompts]


def mode(name: str = "retriever_context") -> ModePreset:
    return get(ModePreset, name)[1]


def question(text: str = "who?", *answers: str) -> Question:
    return Question(question_id="q1", question=text, answers=list(answers) or ["gold"])


def passages(*texts: str, title: str = "") -> list[Passage]:
    return [Passage(passage_id=f"p{i}", text=text, title=title) for i, text in enumerate(texts)]


def test_a_prompt_is_instruction_then_passages_by_rank_then_question() -> None:
    prompt = build(mode(), question("who?"), [*passages("One.", title="T"), *passages("Two.")], None)
    assert prompt.text == (
        "Answer the question with a short answer from the passages.\n\nT\nOne.\n\nTwo.\n\nQuestion: who?\nAnswer:"
    )
    assert [p.text for p in prompt.passages] == ["One.", "Two."]
    one = build(mode(), question("who?"), passages("One.", title="T"), None)
    assert prompt.text.startswith(one.text.split("Question:", maxsplit=1)[0])


def test_no_context_shows_no_passage_and_no_passages_leave_no_gap() -> None:
    assert build(mode("no_context"), question(), passages("One."), None).passages == []
    empty = build(mode("oracle_context"), question(), [], None)
    assert empty.text == "Answer the question with a short answer from the passages.\n\nQuestion: who?\nAnswer:"


def test_trap_12_braces_and_percent_signs_are_plain_text() -> None:
    odd = "{passages} {question} {{x}} {0} %s %(a)s {__class__} \\1 \\g<0>"
    prompt = build(mode(), question(odd), passages(odd, title=odd), None)
    assert prompt.text.count(odd) == 3


def test_fill_knows_its_own_names_alone() -> None:
    assert fill("{rank}. {title} {other}", {"rank": "2", "title": "{rank}"}) == "2. {rank} {other}"
    assert fill("a\n{x}\nb", {"x": ""}) == "a\nb"
    assert fill("a\n\n{x}\n\nb", {"x": ""}) == "a\n\nb"
    assert fill("{x}\n\nb\n\n\nc", {"x": ""}) == "b\n\n\nc"


def test_trap_8_the_lowest_ranked_passages_go_first() -> None:
    found = passages("one " * 10, "two " * 10, "the gold " * 5)
    prompt = build(mode(), question(), found, Words(35))
    assert [p.passage_id for p in prompt.passages] == ["p0", "p1"]
    assert (prompt.dropped, prompt.trimmed, prompt.cut_answer) == (1, False, True)
    assert prompt.text.endswith("Question: who?\nAnswer:")


def test_trap_8_then_the_last_one_is_trimmed_at_a_word() -> None:
    found = passages("alpha beta gamma delta gold", "two " * 20)
    prompt = build(mode(), question(), found, Words(17))
    assert prompt.passages[0].text == "alpha beta gamma delta"
    assert (prompt.dropped, prompt.trimmed, prompt.cut_answer) == (1, True, True)


def test_an_answer_that_still_stands_is_not_cut() -> None:
    found = passages("the gold " * 3, "gold " * 20)
    assert not build(mode(), question(), found, Words(20)).cut_answer
    assert not build(mode(), question("who?", "silver"), found, Words(20)).cut_answer


def test_a_question_that_does_not_fit_is_named() -> None:
    with pytest.raises(SlmxError, match="q1"):
        build(mode(), question("long " * 40), passages("text"), Words(20))
    with pytest.raises(SlmxError, match="q1"):
        build(mode("no_context"), question("long " * 40), [], Words(20))


def test_a_template_without_its_places_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\{question\}"):
        build(ModePreset(context="none", template="Hello"), question(), [], None)
    with pytest.raises(UsageError, match=r"\{passages\}"):
        build(ModePreset(context="oracle", template="{question}"), question(), [], None)


def test_all_that_fits_is_counted_once_and_the_rest_side_by_side() -> None:
    window = Words(60)
    build_all(mode(), [(question(), passages("one two", "three"))] * 50, window)
    assert window.calls == 1
    build_all(mode(), [(question(), passages(*["w " * 30] * 8))] * 50, window)
    assert window.calls <= 6


def test_a_passage_of_a_book_is_trimmed_within_memory_and_a_few_counts() -> None:
    window = Words(100)
    prompt = build(mode(), question(), passages("word " * 90_000), window)
    assert prompt.trimmed and len(prompt.text.split()) == 100
    assert window.calls < 22


texts = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60), max_size=6)


@settings(max_examples=150, deadline=None)
@given(texts=texts, titles=st.text(max_size=8), asked=st.text(max_size=30), budget=st.integers(1, 60))
def test_never_over_budget_question_whole_order_kept(texts: list[str], titles: str, asked: str, budget: int) -> None:
    found = passages(*texts, title=titles)
    try:
        prompt = build(mode(), question(asked), found, Words(budget))
    except SlmxError:
        bare = build(mode(), question(asked), [], None)
        assert len(bare.text.split()) > budget
        return
    assert len(prompt.text.split()) <= budget
    assert prompt.text.endswith(f"Question: {asked}\nAnswer:")
    assert len(prompt.passages) + prompt.dropped == len(found)
    for kept, given_ in zip(prompt.passages, found, strict=False):
        assert kept.passage_id == given_.passage_id
    for kept, given_ in list(zip(prompt.passages, found, strict=False))[: -1 if prompt.trimmed else None]:
        assert kept.text == given_.text
    if prompt.trimmed:
        assert len(prompt.passages) == 1
        assert found[0].text.startswith(prompt.passages[0].text)
