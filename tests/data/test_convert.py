from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmx.data import sources
from slmx.data.convert import convert, in_train
from slmx.data.merge_nq import merge_nq
from slmx.errors import PartlyDone, RefusedError, SlmxError, UsageError

Write = Callable[..., Path]
Row = Callable[..., dict[str, Any]]


def test_nq_keeps_its_keys_and_its_tokens(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    to = tmp_path / "nq_full_dataset.json"
    result = convert(write_lines("m.jsonl", [merged_row(n) for n in range(3)]), to)
    rows = json.loads(to.read_text())
    assert list(rows[0]) == ["question", "answer", "context", "long_context", "short_context", "id", "url", "title"]
    assert rows[2]["context"] == merged_row(2)["document_text"] and rows[2]["id"] == "1002"
    assert rows[0]["short_context"] == ["Anna Berg"] and rows[0]["title"] == "River 0"
    assert (result.rows, result.written, result.errors) == (3, 3, "")
    result.check()
    assert len(to.read_text().splitlines()) == 5
    again = tmp_path / "again.json"
    convert(to, again)
    assert again.read_bytes() == to.read_bytes()


def test_clean_text_drops_the_tokens_and_keeps_the_long_answer_in_it(
    write_lines: Write, merged_row: Row, tmp_path: Path
) -> None:
    convert(write_lines("m.jsonl", [merged_row(1)]), tmp_path / "c.json", clean_text=True)
    (row,) = json.loads((tmp_path / "c.json").read_text())
    assert row["long_context"] == ["Its source was found in 1871 by Anna Berg, who walked there."]
    assert row["long_context"][0] in row["context"] and "<" not in row["context"]
    items = list(sources.read(tmp_path / "c.json"))
    assert len(items) == 1


def test_simple_qa_and_back(tmp_path: Path, write_lines: Write) -> None:
    meta = "{'topic': 'Art', 'answer_type': 'Person', 'urls': ['u']}"
    documents = repr(["one\n\nwith a gap", "two"]).replace('"', '""')
    source = write_lines(
        "s.csv",
        ["metadata,problem,answer,documents,long_answer", f'"{meta}",q?,a,"{documents}",plain', f'"{meta}",r?,b,,'],
    )
    to = tmp_path / "simple_qa_converted.json"
    convert(source, to)
    rows = json.loads(to.read_text())
    assert rows[0]["answer"] == "a" and rows[0]["context"] == "one\n\nwith a gap\n\ntwo"
    assert rows[0]["long_answer"] == "plain" and "long_answer" not in rows[1]
    assert rows[1]["metadata"] == {
        "id": 1,
        "topic": "Art",
        "answer_type": "Person",
        "urls": ["u"],
        "source": "simple_qa",
    }
    item = next(iter(sources.read(to)))
    assert isinstance(item, sources.Item)
    assert [d.text for d in item.documents] == ["one\n\nwith a gap", "two"]


def test_others_become_pairs_and_the_target_decides(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    nq_open = write_lines("o.jsonl", [{"question": "q", "answer": ["a", " ", "b"]}])
    convert(nq_open, tmp_path / "qa_pairs.jsonl")
    (line,) = (tmp_path / "qa_pairs.jsonl").read_text().splitlines()
    assert json.loads(line).keys() == {"question_id", "question", "answer"} and json.loads(line)["answer"] == ["a", "b"]
    merged = write_lines("m.jsonl", [merged_row(0)])
    assert convert(merged, tmp_path / "p.jsonl").form == "qa-pairs"
    assert convert(merged, tmp_path / "p2.json", form="simple-qa-json").form == "simple-qa-json"
    with pytest.raises(UsageError, match="form"):
        convert(merged, tmp_path / "x.json", form="nq-fill")
    with pytest.raises(UsageError, match="json"):
        convert(merged, tmp_path / "x.csv")


def test_a_few_bad_rows_are_named_and_the_end_is_partly_done(
    write_lines: Write, merged_row: Row, tmp_path: Path
) -> None:
    past = {"long_answer": {"candidate_index": 10**6}, "short_answers": []}
    rows = [merged_row(n) for n in range(40)]
    source = write_lines("m.jsonl", [*rows, "{broken", merged_row(41, annotations=[past, past])])
    result = convert(source, tmp_path / "o.json")
    assert (result.rows, result.written, result.left_out, result.warned) == (42, 41, 1, 1)
    errors = [json.loads(line) for line in Path(result.errors).read_text().splitlines()]
    assert [(e["line"], e.get("kept", False)) for e in errors] == [(41, False), (42, True), (42, True)]
    assert errors[1]["field"] == "annotations[0].long_answer.candidate_index"
    with pytest.raises(PartlyDone) as caught:
        result.check()
    assert caught.value.code == 3 and "o.json.errors.jsonl" in caught.value.hint


def test_warnings_alone_are_success(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    row = merged_row(0, annotations=[{"short_answers": [{"start_token": 999, "end_token": 1000}]}])
    result = convert(write_lines("m.jsonl", [row]), tmp_path / "o.json")
    assert (result.left_out, result.warned) == (0, 1) and result.errors
    result.check()


def test_too_many_bad_rows_fail_and_only_the_errors_are_written(
    write_lines: Write, merged_row: Row, tmp_path: Path
) -> None:
    source = write_lines("m.jsonl", [merged_row(0), *["{broken"] * 2, *[merged_row(n) for n in range(10)]])
    with pytest.raises(SlmxError, match="2 of 13 rows") as caught:
        convert(source, tmp_path / "o.json", split=0.5)
    assert caught.value.code == 1 and "--allow-errors" in caught.value.hint and "line 2" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl", "o.json.errors.jsonl"]
    assert convert(source, tmp_path / "o.json", allow_errors=True).written == 11
    good = write_lines("g.jsonl", [merged_row(0)])
    convert(good, tmp_path / "o.json", overwrite=True)
    assert not (tmp_path / "o.json.errors.jsonl").exists()


def test_nothing_usable_fails_even_when_errors_are_allowed(write_lines: Write, tmp_path: Path) -> None:
    with pytest.raises(SlmxError, match="1 of 1 rows"):
        convert(write_lines("m.jsonl", ["{"]), tmp_path / "o.json", format="nq-merged", allow_errors=True)


def test_strict_stops_at_the_first(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    source = write_lines("m.jsonl", [*[merged_row(n) for n in range(30)], "{broken"])
    with pytest.raises(SlmxError, match="Line 31: row"):
        convert(source, tmp_path / "o.json", strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_nothing_is_overwritten_unasked(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    source = write_lines("m.jsonl", [merged_row(0)])
    (tmp_path / "o_eval.json").write_text("mine")
    with pytest.raises(RefusedError, match=r"o_eval\.json exists"):
        convert(source, tmp_path / "o.json", split=0.5)
    assert not (tmp_path / "o.json").exists() and (tmp_path / "o_eval.json").read_text() == "mine"


def test_a_split_is_a_partition_that_stays_when_rows_are_added(
    write_lines: Write, merged_row: Row, tmp_path: Path
) -> None:
    def sides(count: int, seed: int = 0) -> tuple[set[str], set[str]]:
        source = write_lines(f"m{count}.jsonl", [merged_row(n) for n in range(count)])
        result = convert(source, tmp_path / "f.json", split=0.8, seed=seed, overwrite=True)
        train, eval_, whole = (json.loads((tmp_path / f"f{s}.json").read_text()) for s in ("_train", "_eval", ""))
        assert result.train + result.eval == result.written == len(whole) == len(train) + len(eval_)
        return {r["id"] for r in train}, {r["id"] for r in eval_}

    train, eval_ = sides(300)
    more_train, more_eval = sides(400)
    assert train <= more_train and eval_ <= more_eval and not more_train & more_eval
    assert 0.7 < len(more_train) / 400 < 0.9
    assert sides(400, seed=1)[0] != more_train
    assert in_train("x", 1 - 1e-12, 0) and not in_train("x", 1e-12, 0)
    for share in (0.0, 1.0, 8.0):
        with pytest.raises(UsageError):
            convert(tmp_path / "m300.jsonl", tmp_path / "g.json", split=share)


def test_max_items_counts_bad_rows_too(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    source = write_lines("m.jsonl", [merged_row(0), "{broken", merged_row(1), merged_row(2)])
    result = convert(source, tmp_path / "o.json", max_items=3, allow_errors=True)
    assert (result.rows, result.written) == (3, 2)


def test_killed_it_leaves_nothing_at_a_final_name(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    source = write_lines("m.jsonl", [merged_row(n) for n in range(20_000)])
    code = (
        "import sys; from pathlib import Path; from slmx.data.convert import convert; "
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), split=0.5, listen=lambda e: print(e.done, flush=True))"
    )
    to = tmp_path / "o.json"
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(to)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not any(p.suffix == ".json" for p in tmp_path.iterdir())


MEMORY = """
import resource, sys
from pathlib import Path
from slmx.data.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_rows(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    row = json.dumps(merged_row(0, document_text="word " * 8000, annotations=[]))

    def peak(count: int) -> int:
        source = write_lines(f"m{count}.jsonl", [row] * count)
        command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / f"o{count}.json")]
        found = int(subprocess.run(command, capture_output=True, check=True).stdout)
        source.unlink()
        return found

    assert peak(2000) < peak(500) + 8 * 1024  # KiB; the larger file has 60 MB more


# ------------------------------------------------------------------------------------------------------------ merge-nq


def test_merge_nq(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    names = ("document_text", "document_url", "annotations", "long_answer_candidates", "example_id")
    simplified = []
    for number in range(30):
        row = merged_row(number)
        simplified.append({"question_text": f" {row['question'].upper()}", **{k: row[k] for k in names}})
    tokens = [{"token": t, "html_token": t.startswith("<")} for t in merged_row(1)["document_text"].split(" ")]
    del simplified[1]["document_text"]
    simplified[1]["document_tokens"] = [*tokens, {"token": "with space"}]
    nq_open = write_lines(
        "open.jsonl",
        [{"question": merged_row(n)["question"], "answer": ["x"]} for n in (0, 1, 2)]
        + [{"question": "nobody asked", "answer": ["y"]}],
    )
    source = write_lines("simplified.jsonl", [*simplified, simplified[0], "{broken"])
    to = tmp_path / "merged.jsonl"
    result = merge_nq(nq_open, source, to)
    assert (result.questions, result.written, result.read, result.again, result.left_out) == (4, 3, 32, 1, 1)
    assert result.unmatched == ["nobody asked"]
    with pytest.raises(PartlyDone):
        result.check()
    items = [i for i in sources.read(to) if isinstance(i, sources.Item)]
    assert sources.detect(to) == "nq-merged"
    assert [i.short_contexts for i in items] == [["Anna Berg"]] * 3 and items[0].question.answers == ["x"]
    assert items[1].documents[0].text.endswith("with_space")
    errors = [json.loads(line) for line in Path(result.errors).read_text().splitlines()]
    assert {e["reason"].split(":")[0] for e in errors} >= {"no document has it"}


def test_merge_nq_without_a_single_match_writes_nothing(write_lines: Write, tmp_path: Path) -> None:
    nq_open = write_lines("open.jsonl", [{"question": "q", "answer": ["x"]}])
    source = write_lines("s.jsonl", [{"question_text": "r", "document_text": "d"}])
    with pytest.raises(SlmxError, match="No question"):
        merge_nq(nq_open, source, tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()
