"""The page in a real browser: it runs no text of a model, asks for nothing, and every control does what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmx.eval.report import write_report
from tests.browser import Browser, Page

READY = "document.documentElement.dataset.ready"
QUESTIONS = "[...document.querySelectorAll('button.question .asked')].map(e => e.textContent)"
FOCUSED = "document.activeElement.textContent"
PHONE = {"width": 390, "height": 844}

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def report(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("report") / "report.html"
    write_report([outputs], to)
    return to


@pytest.fixture
def open_page(browser: Browser, report: Path) -> Iterator[Open]:
    """Opens the report; whatever a test did, no console error, no dialog and no request may have come of it."""
    opened = []

    def start(*, address: str = "", **settings: object) -> Page:
        page = browser.open(report.as_uri() + address, **settings)  # type: ignore[arg-type]
        opened.append(page)
        if settings.get("scripts", True):
            page.wait(READY)
        return page

    yield start
    for page in opened:
        browser.listen(0.05)
        assert page.problems == []
        assert {url.partition("#")[0] for url in page.requests} == {report.as_uri()}
        page.close()


def counts(page: Page) -> dict[str, int]:
    names = ("all", "helped", "hurt", "both-right", "both-wrong", "ignored")
    return {name: int(page.js(f"document.getElementById('count-{name}').textContent")) for name in names}


def choose(page: Page, field: str, value: str) -> None:
    page.js(
        f"(() => {{ const s = document.getElementById('{field}');"
        f"s.value = {value!r}; s.dispatchEvent(new Event('change')); }})()"
    )


def type_into(page: Page, field: str, text: str) -> None:
    page.js(f"document.getElementById('{field}').focus()")
    page.call("Input.insertText", text=text)


def test_texts_of_models_stay_texts(open_page: Open) -> None:
    page = open_page()
    for number in range(8):
        page.click(f"#questions > li:nth-child({number + 1}) button.question")
        page.wait(f"document.querySelector('#questions > li:nth-child({number + 1}) .cards')")
    page.js("document.querySelectorAll('#questions details').forEach(d => d.open = true)")
    assert (
        page.js(
            "document.querySelectorAll('#questions script, #questions img, #questions b:not(.yes):not(.no)').length"
        )
        == 0
    )
    shown = page.js("document.querySelector('#questions').textContent")
    for text in (
        "<script>alert(1)</script>",
        "</script><script>alert(2)</script>",
        "<!-- <script>",
        "<img src=x",
        "${alert(4)}",
    ):
        assert text in shown
    assert page.js("document.querySelectorAll('script:not([type])').length") == 1


def test_the_text_of_a_bidirectional_answer_turns_nothing_around_it(open_page: Open) -> None:
    page = open_page()
    page.click("#questions > li:nth-child(7) button.question")
    page.wait("document.querySelector('#questions > li:nth-child(7) .cards')")
    assert page.js(
        "[...document.querySelectorAll('#questions .answer, #questions .asked')].every(e => e.dir === 'auto')"
    )


def test_outcomes_are_counted_and_filtered(open_page: Open) -> None:
    page = open_page()
    assert page.js("[document.getElementById('base').value, document.getElementById('other').value]") == ["1", "2"]
    assert counts(page) == {"all": 60, "helped": 26, "hurt": 2, "both-right": 18, "both-wrong": 14, "ignored": 32}
    page.click("input[value=hurt] + span")
    assert [name.split()[3] for name in page.js(QUESTIONS)] == ["0", "1"]
    assert page.js("document.getElementById('shown').textContent") == "Questions 1–2 of 2 (60 in all)"
    choose(page, "base", "0")
    assert counts(page)["hurt"] == 2
    choose(page, "other", "0")
    assert (counts(page)["helped"], counts(page)["hurt"], counts(page)["ignored"]) == (0, 0, 60)
    assert page.js("document.getElementById('shown').textContent").startswith("No question fits")


def test_search_finds_questions_golds_and_answers(open_page: Open) -> None:
    page = open_page()
    type_into(page, "find", "THING 17")
    assert page.js(QUESTIONS) == ["what is thing 17"]
    type_into(page, "find", " gold17 indeed")
    assert len(page.js(QUESTIONS)) == 1
    page.press("Escape")
    assert page.js("document.getElementById('find').value") == ""
    assert len(page.js(QUESTIONS)) == 20


def test_topics_filter(open_page: Open) -> None:
    page = open_page()
    assert page.js("[...document.getElementById('group').options].map(o => o.text)") == [
        "all",
        "<b>Science</b>",
        "Art",
        "Sports",
    ]
    choose(page, "group", "Sports")
    assert counts(page)["all"] == 20


def test_pages_turn(open_page: Open) -> None:
    page = open_page()
    assert page.js("document.getElementById('previous').disabled")
    page.click("#next")
    assert page.js("document.getElementById('of-pages').textContent") == "page 2 of 3"
    assert page.js(QUESTIONS)[0] == "what is thing 20"
    page.click("#last")
    assert page.js("document.getElementById('next').disabled")
    page.click("#first")
    assert page.js(QUESTIONS)[0].startswith("what is thing 0")


def test_the_explorer_works_from_the_keyboard(open_page: Open) -> None:
    page = open_page()
    page.press("/")
    assert page.js("document.activeElement.id") == "find"
    page.js("document.querySelector('button.question').focus()")
    page.press("ArrowDown")
    page.press("j")
    assert "thing 2" in page.js(FOCUSED)
    page.press("k")
    page.press("ArrowUp")
    page.press("Enter")
    assert page.js("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.wait("document.querySelectorAll('#questions .cards .card').length === 4")
    page.press("Enter")
    assert page.js("document.querySelectorAll('#questions .cards').length") == 0
    page.press("n")
    assert page.js(FOCUSED).startswith("what is thing 20")
    page.press("p")
    assert page.js(FOCUSED).startswith("what is thing 0")


def test_an_opened_question_marks_gold_words_and_the_used_passage(open_page: Open) -> None:
    page = open_page()
    type_into(page, "find", "thing 19")
    page.click("button.question")
    page.wait("document.querySelector('.cards')")
    cards = page.js("[...document.querySelectorAll('.card h4')].map(e => e.textContent)")
    assert cards == ["B · bm25, k=5", "C · hybrid, k=5", "A · none", "D · oracle"]
    assert page.js("document.querySelector('.card .answer mark.gold').textContent") == "gold19"
    assert page.js("document.querySelector('.card .context').textContent") == "2 passages, 1 with the gold answer"
    assert page.js("document.querySelector('.golds').textContent") == "gold: gold19"
    assert "(empty answer)" in page.js("document.querySelectorAll('.card')[2].textContent")
    assert page.js("document.querySelectorAll('.card')[0].querySelector('.passage mark.gold').textContent") == "gold19"


def test_a_passage_is_marked_as_used_where_the_words_of_the_answer_come_from_it(
    browser: Browser, tmp_path: Path
) -> None:
    from slmx.records import Question
    from tests.eval.made_runs import cell, make_run

    asked = [Question(question_id="1", question="where is the lamp", answers=["in St. Louis"])]
    passages = [["The sea is deep.", "The lamp stands in St. Louis, Missouri, today."]]
    make_run(tmp_path, cell("m", "retrieved", "bm25"), asked, ["The lamp stands in St. Louis"], passages)
    write_report([tmp_path], tmp_path / "r.html")
    page = browser.open((tmp_path / "r.html").as_uri())
    page.wait(READY)
    page.click("button.question")
    used = page.wait("document.querySelector('.passage.is-used')?.textContent")
    assert used.startswith("passage 2 used: 100 % of the answer's words holds the gold answer")
    assert page.js("document.querySelector('.passage.is-used mark.gold').textContent") == "in St. Louis,"
    assert page.problems == []
    page.close()


def test_numbers_of_the_tables_lead_to_their_questions(open_page: Open) -> None:
    page = open_page()
    page.js("document.querySelector('a[href=\"#show-1-2-hurt\"]').click()")
    page.wait("document.querySelectorAll('button.question').length === 2")
    assert page.js("document.querySelector('input[name=outcome]:checked').value") == "hurt"
    direct = open_page(address="#show-0-3-helped")
    assert direct.js("[document.getElementById('base').value, document.getElementById('other').value]") == ["0", "3"]
    open_page(address="#show-9-99-nonsense")


def test_light_dark_and_the_switch(open_page: Open) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = open_page(), open_page(dark=True)
    assert light.js(background) == "rgb(255, 255, 255)"
    assert dark.js(background) == "rgb(20, 23, 27)"
    light.click("#theme")
    assert light.js(background) == "rgb(20, 23, 27)"
    assert light.js("document.getElementById('theme').textContent") == "Light"
    light.js("document.getElementById('theme').click()")
    light.js("localStorage.clear()")


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(open_page: Open, dark: bool) -> None:
    """WCAG's contrast of 4.5 : 1 for everything that is read, on paper and on panels."""
    page = open_page(dark=dark)
    ratio = """(pair => { const lum = name => { const e = document.createElement('i'); e.style.color = `var(--${name})`;
      document.body.append(e);
      const c = getComputedStyle(e).color.match(/[\\d.]+/g).slice(0, 3).map(Number); e.remove();
      const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
      return .2126 * r + .7152 * g + .0722 * b; }; const [a, b] = pair.map(lum);
      return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); })"""
    for ink in ("ink", "soft", "link", "yes", "no"):
        for ground in ("paper", "panel"):
            assert page.js(f"{ratio}(['{ink}', '{ground}'])") >= 4.5, (ink, ground)


@pytest.mark.parametrize("size", [PHONE, {"width": 1400, "height": 900}])
def test_nothing_sticks_out_sideways(open_page: Open, size: dict[str, int]) -> None:
    page = open_page(**size)
    page.click("button.question")
    page.wait("document.querySelector('.cards')")
    assert page.js("document.documentElement.scrollWidth <= innerWidth")


def test_without_script_the_tables_are_there(open_page: Open) -> None:
    page = open_page(scripts=False)
    assert page.js("document.querySelectorAll('table').length") >= 8
    assert page.js("[...document.querySelectorAll('svg')].every(e => e.getBoundingClientRect().width > 0)")
    assert "needs JavaScript" in page.js("document.getElementById('no-explorer').innerText")
    assert page.js("['theme', 'filters', 'browse'].every(id => document.getElementById(id).offsetParent === null)")


def test_headings_tables_and_drawings_are_named(open_page: Open) -> None:
    page = open_page()
    assert page.js("document.querySelectorAll('h1').length") == 1
    assert page.js(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('thead th[scope=col]')"
        "&& t.querySelectorAll('tbody th[scope=row]').length === t.tBodies[0].rows.length)"
    )
    assert page.js(
        "[...document.querySelectorAll('main svg:not([aria-hidden]):not(svg svg)')]"
        ".every(s => s.getAttribute('aria-label'))"
    )
    assert page.js(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
        "=== document.querySelectorAll('[id]').length"
    )
    assert page.js("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))")


def test_it_prints_in_light_without_the_explorer(open_page: Open) -> None:
    page = open_page(dark=True)
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.js("getComputedStyle(document.getElementById('explorer')).display") == "none"


def test_a_browser_that_cannot_unpack_says_so(browser: Browser, report: Path) -> None:
    page = browser.open("about:blank")
    page.call("Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.DecompressionStream")
    page.go(report.as_uri())
    assert "cannot unpack" in page.wait("document.getElementById('no-explorer').textContent")
    assert page.problems == []
    page.close()
