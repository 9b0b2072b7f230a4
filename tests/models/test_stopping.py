import pytest
from hypothesis import given, strategies as st

from slmx.models.stopping import Reading, read


def test_trap_10_what_follows_the_answer_is_not_read() -> None:
    assert read(" Paris\n\nQuestion: who is next?\nAnswer: nobody") == Reading("Paris", "", "line")
    assert read(" Paris Question: who is next?\nAnswer: nobody") == Reading("Paris", "", "question")
    assert read("Question: who?") == Reading("", "", "question")
    assert read(" Париж Вопрос: кто?") == Reading("Париж", "", "question")
    assert read("the FAQ: ends, and a question remains") == Reading("the FAQ: ends, and a question remains")


@pytest.mark.parametrize("text", ["St. Louis", "Washington, D.C.", "J. R. R. Tolkien. He wrote it. In 1954."])
def test_trap_11_a_full_stop_ends_nothing(text: str) -> None:
    assert read(f" {text} ") == Reading(text)


def test_blank_lines_before_the_answer_are_skipped() -> None:
    assert read("\n\n  \nParis") == Reading("Paris")
    assert read("\n\n  \nParis\n") == Reading("Paris", "", "line")
    assert read("\n \n") == Reading("")


def test_rules_can_be_left_out() -> None:
    assert read("a\nb Question: c", ()) == Reading("a\nb Question: c")
    assert read("a\nb Question: c", ("question",)) == Reading("a\nb", "", "question")


def test_trap_14_a_thinking_block_is_taken_out_once_and_only_when_it_is_one() -> None:
    assert read("<think>\nFirst.\nQuestion: hm\n</think>\n\nParis") == Reading("Paris", "First.\nQuestion: hm")
    assert read("<think>\n\n</think>\n\nParis\n") == Reading("Paris", "", "line")
    assert read("<think>a</think><think>b</think> c") == Reading("<think>b</think> c", "a")
    assert read("the tag <think> opens a block") == Reading("the tag <think> opens a block")
    assert read("no block</think> here") == Reading("no block</think> here")
    assert read("<think>never\nclosed") == Reading("", "never\nclosed")


def test_a_prompt_can_leave_the_block_open() -> None:
    assert read("so\nso</think>\nParis", opened=True) == Reading("Paris", "so\nso")
    assert read("so\nso", opened=True) == Reading("", "so\nso")


@given(st.text(max_size=80))
def test_an_answer_is_one_line_and_reading_more_never_changes_it(text: str) -> None:
    whole = read(text)
    assert len(whole.text.splitlines()) <= 1
    if whole.stop:
        assert read(text + " more\nQuestion: x") == whole
