"""`slmx data prepare-sft`: conversations become examples for `slmx train sft`, with a mask of what is learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slmx import files
from slmx.data.chat_templates import Template
from slmx.data.conversations import Conversation, from_dataset, read_conversations
from slmx.data.convert import in_train
from slmx.data.sft_files import EmptyMask, SftWriter, view_of
from slmx.data.sources import BadRow, BadRows
from slmx.data.token_files import FORMAT, SPLITS, TOKENIZER, Sidecar, Source, dtype_for
from slmx.errors import PartlyDone, SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.models.tokenizers import CONFIG, Tokenizer
from slmx.records import Record

MARKER = "train.json"
ERRORS = "errors.jsonl"
JINJA = "chat_template.jinja"
_NAMED_ROWS = 1000


@dataclass(frozen=True)
class SftJob:
    """What is to be made of which conversations.

    Attributes:
        sources: files of any form of `slmx.data.conversations`; for the templates qa and qa-chat datasets.
        template: one of `slmx.data.chat_templates.NAMES`.
        max_tokens: longer conversations are left out; None keeps all (training leaves out what does not fit).
    """

    sources: Sequence[str]
    tokenizer: Tokenizer
    to: Path
    template: str = "chatml"
    max_tokens: int | None = None
    val_share: float = 0.05
    seed: int = 0
    data_dir: Path = Path("data")
    cache_dir: Path = Path(".cache")
    allow_errors: bool = False
    overwrite: bool = False


class SftPrepared(Record, frozen=True):
    """What was made. `learnt_tokens` are those in the loss; `kinds` counts what the QA templates teach."""

    folder: str
    tokenizer: str
    template: str
    examples: int
    train_examples: int
    val_examples: int
    tokens: int
    learnt_tokens: int
    longest: int
    too_long: int
    left_out: int
    kinds: dict[str, int]
    view: list[tuple[str, bool]]

    def check(self) -> None:
        """PartlyDone (exit code 3) when rows were left out."""
        if self.left_out:
            where = Path(self.folder) / ERRORS
            raise PartlyDone(f"{self.left_out} rows are no conversation.", hint=f"They are named in {where}.")


def prepare_sft(job: SftJob, listen: Listener = nobody) -> SftPrepared:
    """Make the examples of a job.

    Raises:
        EmptyMask: the template writes no answer of a conversation, so that nothing of it would be learnt.
        UsageError: a template that does not exist or does not fit.
        SlmxError: nothing to learn from, a damaged file, or too many bad rows.
    """
    files.check_place(job.to, marker=MARKER, overwrite=job.overwrite)
    if not 0 <= job.val_share < 1:
        raise UsageError(f"--val-share {job.val_share} is no share.", hint="Give a number from 0 to below 1.")
    template = Template(job.template, job.tokenizer)
    with files.whole_folder(job.to, marker=MARKER, overwrite=job.overwrite) as folder:
        made = _Making(job, template, folder, listen)
        made.run()
        _copy_tokenizer(job.tokenizer, template, folder / TOKENIZER)
        if made.named:
            files.write_jsonl(folder / ERRORS, made.named)
    if made.too_long:
        listen(Notice(f"{made.too_long} conversations are longer than {job.max_tokens} tokens: left out.", "warning"))
    if job.val_share and not made.examples[1]:
        listen(Notice("No conversation fell on the validation side: give a larger --val-share.", "warning"))
    return made.account()


def _copy_tokenizer(tokenizer: Tokenizer, template: Template, folder: Path) -> None:
    """The tokenizer with the template in it, so that the trained model is asked as it was taught."""
    tokenizer.copy_to(folder)
    (folder / JINJA).unlink(missing_ok=True)
    config = {**files.read_json(folder / CONFIG)}
    config.pop("chat_template", None)
    files.write_json(folder / CONFIG, {**config, **({"chat_template": template.saved} if template.saved else {})})


class _Making:
    """One run: reads conversations, encodes them, writes them to their sides, and counts."""

    def __init__(self, job: SftJob, template: Template, folder: Path, listen: Listener) -> None:
        self.job, self._template, self._listen = job, template, listen
        about = Sidecar(
            format=FORMAT,
            tokenizer=job.tokenizer.name,
            tokenizer_hash=job.tokenizer.hash,
            vocab_size=job.tokenizer.vocab_size,
            dtype=dtype_for(job.tokenizer.vocab_size),
            tokens=0,
            documents=0,
            text_bytes=0,
            end_of_text=job.tokenizer.end_of_text,
            options={
                "kind": "sft",
                "template": job.template,
                "max_tokens": job.max_tokens,
                "val_share": job.val_share,
                "seed": job.seed,
            },
        )
        self._folder, self._about = folder, about
        self.bad = BadRows(allow=job.allow_errors)
        self.named: list[dict[str, Any]] = []
        self.kinds: Counter[str] = Counter()
        self.examples = [0, 0]
        self.tokens = self.learnt = self.longest = self.too_long = 0
        self.view: list[tuple[str, bool]] = []
        self._sources: list[Source] = []

    def run(self) -> None:
        """Write both sides."""
        writers = [SftWriter(self._folder, split, self._about) for split in SPLITS]
        for conversation in self._conversations():
            self._add(conversation, writers)
        first = self.named[0]["file"] if self.named else ""
        self.bad.judge(Path(first), "")
        if not sum(self.examples):
            raise SlmxError(
                f"There is nothing to learn from in {', '.join(self.job.sources)}.",
                hint="All conversations are too long: raise --max-tokens." if self.too_long else "The files are empty.",
            )
        if not self.examples[0]:
            raise SlmxError("No conversation falls on the training side.", hint="Give more, or a smaller --val-share.")
        for writer in writers:
            writer.close(self._sources)

    def _add(self, conversation: Conversation, writers: list[SftWriter]) -> None:
        ids, mask = self._template.encode(conversation)
        said = [f"{turn.role}: {turn.content}" for turn in conversation.turns]
        if not any(mask):
            raise EmptyMask(
                f"The template {self.job.template} writes no answer: nothing would be learnt of a conversation that "
                f"begins {said[0][:60]!r}.",
                view_of(self.job.tokenizer, ids, mask),
                hint="Use --template chatml, or correct the tokenizer's chat template.",
            )
        if self.job.max_tokens is not None and len(ids) > self.job.max_tokens:
            self.too_long += 1
            return
        if not self.view:
            self.view = view_of(self.job.tokenizer, ids, mask)
        # A question is on one side with all that is taught of it.
        key = conversation.question or "\n".join(said)
        share = self.job.val_share
        side = 0 if not share or in_train(files.hash_bytes(key), 1 - share, self.job.seed) else 1
        writers[side].add(ids, mask, sum(len(turn.content.encode()) for turn in conversation.turns))
        self.examples[side] += 1
        self.tokens += len(ids)
        self.learnt += sum(mask)
        self.longest = max(self.longest, len(ids))
        if conversation.kind:
            self.kinds[conversation.kind] += 1
        if sum(self.examples) % 500 == 0:
            self._listen(Progress("Examples", sum(self.examples), None, "examples"))

    def _conversations(self) -> Iterator[Conversation]:
        for name in self.job.sources:
            if self.job.template.startswith("qa"):
                yield from self._asked(name)
                continue
            path = Path(name)
            self._sources.append(_source(path))
            for row in read_conversations(path):
                if isinstance(row, BadRow):
                    self.bad.add(row)
                    if len(self.named) < _NAMED_ROWS:
                        self.named.append({"file": name, **msgspec.to_builtins(row)})
                else:
                    self.bad.seen += 1
                    yield row

    def _asked(self, name: str) -> Iterator[Conversation]:
        from slmx.data.datasets import open_dataset

        dataset = open_dataset(name, data_dir=self.job.data_dir, cache_dir=self.job.cache_dir, listen=self._listen)
        self._sources.append(Source(path=name, hash=dataset.content_hash, bytes=0))
        yield from from_dataset(dataset, seed=self.job.seed)

    def account(self) -> SftPrepared:
        """What was made."""
        return SftPrepared(
            folder=str(self.job.to),
            tokenizer=self.job.tokenizer.name,
            template=self.job.template,
            examples=sum(self.examples),
            train_examples=self.examples[0],
            val_examples=self.examples[1],
            tokens=self.tokens,
            learnt_tokens=self.learnt,
            longest=self.longest,
            too_long=self.too_long,
            left_out=self.bad.left_out,
            kinds=dict(self.kinds),
            view=self.view,
        )


def _source(path: Path) -> Source:
    if not path.is_file():
        raise SlmxError(f"There is no file {path}.", hint="Check the path; relative paths start here.")
    return Source(path=str(path), hash=files.hash_file(path), bytes=path.stat().st_size)
