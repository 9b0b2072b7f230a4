"""`slmx s3 artifacts`: what experiments left in the bucket, by project and run; one of them can be fetched.

A key is `{project}/{experiment}.{task id}/artifacts/{name}/{file}`; other keys are no artifacts and left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Progress, nobody
from slmx.records import Record
from slmx.registry import nearest
from slmx.s3.listing import Entry, human_size, pages
from slmx.s3.objects import Remote
from slmx.s3.plan import Folder, download_jobs
from slmx.s3.preview import one_line
from slmx.s3.store import Store
from slmx.s3.transfer import Moved, Options, download_all

if TYPE_CHECKING:
    from rich.console import RenderableType

# A project may have slashes, an experiment dots; the task id is what follows the last dot.
KEY = re.compile(
    r"(?P<project>.+)/(?P<experiment>[^/]+)\.(?P<task>[^./]+)/artifacts/(?P<name>[^/]+)/(?P<file>[^/].*)", re.S
)


class Artifact(Record, frozen=True, omit_defaults=False):
    """One file of an experiment's artifact.

    Attributes:
        project: the experiment's project.
        run: experiment and task id, as the key has them: `experiment.task`.
        task: the task id.
        name: the artifact's name.
        file: its file; an artifact may have several.
        size: bytes.
        modified: when it was written, ISO 8601 in UTC.
        key: the whole key.
    """

    project: str
    run: str
    task: str
    name: str
    file: str
    size: int
    modified: str
    key: str


def artifacts(
    store: Store, bucket: str, prefix: str = "", *, project: str = "", run: str = "", listen: Listener = nobody
) -> Iterator[Artifact]:
    """Every artifact below a prefix, in the order of the keys: by project, then by run.

    Args:
        project: only of this project; a pattern with * too.
        run: only of this run: an experiment's name, `experiment.task`, or the beginning of a task id.
    """
    seen = 0
    for page in pages(store.client, bucket, prefix, recursive=True):
        seen += len(page)
        listen(Progress("Looking for artifacts", seen, None, "keys"))
        for entry in page:
            found = _artifact(entry, prefix)
            if found and (not project or fnmatchcase(found.project, project)) and (not run or _is_run(found, run)):
                yield found


def one_artifact(found: Sequence[Artifact], name: str) -> list[Artifact]:
    """The files of the one artifact of this name; UsageError when there is none, or when several runs have it."""
    named = [artifact for artifact in found if artifact.name == name]
    if not named:
        near = nearest(name, {artifact.name for artifact in found})
        known = ", ".join(sorted({artifact.name for artifact in found})[:20])
        hint = (f'Did you mean "{near}"? ' if near else "") + (f"There are: {known}." if known else "There are none.")
        raise UsageError(f'There is no artifact "{name}".', hint=hint)
    runs = list(dict.fromkeys(f"{artifact.project}/{artifact.run}" for artifact in named))
    if len(runs) > 1:
        shown = ", ".join(runs[:5]) + (", …" if len(runs) > 5 else "")
        raise UsageError(f'{len(runs)} runs have an artifact "{name}".', hint=f"Choose with --project, --run: {shown}.")
    return named


def fetch_artifact(
    store: Store, bucket: str, files: Sequence[Artifact], folder: Path, options: Options
) -> Iterator[Moved]:
    """Download the files of an artifact, verified, to `folder/project/run/name/file`."""
    found: list[tuple[str, Remote]] = []
    for artifact in files:
        remote = store.look(bucket, artifact.key)
        if remote is None:
            raise SlmxError(f"s3://{bucket}/{artifact.key} has just gone.", hint="List the artifacts again.")
        found.append((f"{artifact.project}/{artifact.run}/{artifact.name}/{artifact.file}", remote))
    jobs, refused = download_jobs(found, Folder(folder))
    yield from refused
    yield from download_all(store, jobs, options)


def render(found: Sequence[Artifact]) -> RenderableType:
    """A table; what repeats from the row above is left out."""
    from slmx.console import table

    rows, above = [], ("", "")
    for artifact in found:
        project, run = artifact.project, artifact.run
        rows.append(
            [
                one_line(project) if project != above[0] else "",
                one_line(run) if (project, run) != above else "",
                one_line(f"{artifact.name}/{artifact.file}"),
                artifact.modified[:16].replace("T", " "),
                human_size(artifact.size),
            ]
        )
        above = (project, run)
    return table("" if rows else "No artifacts.", ("project", "run", "artifact", "written", "size"), rows, left=4)


def _artifact(entry: Entry, prefix: str) -> Artifact | None:
    found = KEY.fullmatch(entry.key[len(prefix) :] if prefix.endswith("/") else entry.key)
    if not found:
        return None
    return Artifact(
        project=found["project"],
        run=f"{found['experiment']}.{found['task']}",
        task=found["task"],
        name=found["name"],
        file=found["file"],
        size=entry.size,
        modified=entry.modified,
        key=entry.key,
    )


def _is_run(artifact: Artifact, run: str) -> bool:
    experiment = artifact.run[: -len(artifact.task) - 1]
    return run in (experiment, artifact.run) or (len(run) >= 4 and artifact.task.startswith(run))
