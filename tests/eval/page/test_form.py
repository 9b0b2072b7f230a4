from __future__ import annotations

import pytest

from slmx.eval.page.form import leaked_tag


@pytest.mark.parametrize(
    ("answer", "tag"),
    [
        ("Paris<|im_end|>", "<|im_end|>"),
        ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<think>let me see", "<think>"),
        ("Paris</s>", "</s>"),
        ("[INST] who", "[INST]"),
        ("<P> Paris </P>", "<P>"),
        ('<a href="x">Paris</a>', '<a href="x">'),
        ("Paris\n### Response: no", "### Response:"),
        ("<start_of_turn>model", "<start_of_turn>"),
        ("Paris", None),
        ("a < b and c > d", None),
        ("<Paris>", None),
        ("x <|y", None),
        ("C# ### is no heading", None),
    ],
)
def test_control_tokens_and_tags_are_found(answer: str, tag: str | None) -> None:
    assert leaked_tag(answer) == tag
