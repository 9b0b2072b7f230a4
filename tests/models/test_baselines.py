import pytest

from slmx.errors import UsageError
from slmx.models.baselines import nearest_sentence, stems
from slmx.models.generators import open_generator
from slmx.records import Passage, Prompt, Question, Request


def passage(text: str) -> Passage:
    return Passage(passage_id=text[:8], text=text)


def request(question: str, *texts: str, answers: tuple[str, ...] = ("gold",)) -> Request:
    asked = Question(question_id="q", question=question, answers=list(answers))
    return Request(question=asked, prompt=Prompt(text="", passages=[passage(text) for text in texts]))


def answer(name: str, of: Request) -> str:
    return open_generator(name).generate([of])[0].text


def test_extractive_takes_the_sentence_that_shares_the_rarest_stems() -> None:
    of = request(
        "who was painting the river in 1871",
        "The river is long. The river was in the north. He walked.",
        "She painted the river in 1871. The end.",
    )
    assert answer("extractive", of) == "She painted the river in 1871."


def test_extractive_keeps_an_abbreviation_whole_and_takes_the_first_of_equals() -> None:
    of = request("where was he born", "He was born in St. Louis, Missouri. He was born in Paris, France.")
    assert answer("extractive", of) == "He was born in St. Louis, Missouri."


def test_extractive_stems_russian_words() -> None:
    of = request("кто написал роман о войне", "Роман понравился всем. Романы о войнах написала она. Конец.")
    assert answer("extractive", of) == "Романы о войнах написала она."
    assert stems(["войнах", "painting"]) == ["войн", "paint"]


def test_extractive_without_passages_or_overlap() -> None:
    assert answer("extractive", request("who")) == ""
    assert nearest_sentence("who", [passage("One two. Three four.")]) == "One two."


def test_first_passage_and_oracle_answer() -> None:
    of = request("who", "First one.", "Second.", answers=("gold", "other"))
    assert answer("first-passage", of) == "First one."
    assert answer("oracle-answer", of) == "gold"
    assert answer("first-passage", request("who")) == ""


def test_baselines_share_the_protocol() -> None:
    for name in ("extractive", "first-passage", "oracle-answer"):
        generator = open_generator(name, max_new_tokens=3)
        requests = [request(f"q{i}") for i in range(600)]
        plan = generator.plan(requests, None)
        assert sorted(i for batch in plan for i in batch) == list(range(600))
        assert plan == generator.plan(requests, None)
        assert (generator.name, generator.window(), generator.size_bytes(), generator.load()) == (name, None, 0, 0.0)
        assert generator.fingerprint() == {"generator": name, "version": 1}
        generator.close()


def test_an_unknown_name_or_option_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='"extractive"'):
        open_generator("extractiv")
    with pytest.raises(UsageError, match='"max_new_tokens"'):
        open_generator("extractive", max_new_token=3)
    with pytest.raises(UsageError, match="at least 1"):
        open_generator("extractive", max_new_tokens=0)
    with pytest.raises(UsageError, match="temperature"):
        open_generator("extractive", temperature=float("nan"))
