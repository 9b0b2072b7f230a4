"""One of two processes of a gloo group: runs the jobs of a file, one after the other, in the same group.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python rank_worker.py JOBS.json

Each job is a run of the training loop; what became of it goes to `{rank}.json` beside the jobs.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from slmx.errors import SlmxError
from slmx.events import Notice, Progress
from slmx.signals import Stop
from slmx.train import batches
from slmx.train.plan import plan_training
from slmx.train.ranks import Ranks, joined
from slmx.train.retriever import train
from slmx.train.retriever_options import TrainOptions

PATHS = ("save_dir", "data_dir", "cache_dir")


def options_of(job: dict[str, Any]) -> TrainOptions:
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in job["options"].items()}
    settings |= {name: Path(settings[name]) for name in PATHS}
    return TrainOptions(**{**settings, "data_dirs": tuple(Path(folder) for folder in settings["data_dirs"])})


def run(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train; on rank `stop_on` somebody sends SIGTERM at step `stop_at`, on `break_on` reading data fails there."""
    stop, seen = Stop(), []
    make = batches.Batches.next

    def watched(own: batches.Batches) -> batches.Ready:
        ready = make(own)
        seen.append([ready.state.step, ready.batch.queries])
        if ranks.rank == job.get("stop_on") and ready.state.step == job["stop_at"]:
            stop.signal = signal.SIGTERM
        if ranks.rank == job.get("break_on") and ready.state.step == job["stop_at"]:
            raise SlmxError("The disk of this process is gone.")
        return ready

    batches.Batches.next = watched  # type: ignore[method-assign]
    spoken: list[str] = []

    def listen(event: Notice | Progress) -> None:
        if isinstance(event, Notice):
            spoken.append(event.text)

    outcome: dict[str, Any] = {}
    try:
        outcome["loss"] = train(plan_training(options_of(job)), stop=stop, listen=listen, ranks=ranks).first_loss
    except SlmxError as error:
        outcome |= {"error": error.what, "code": error.code}
    except SystemExit as gone:
        outcome["left"] = gone.code
    finally:
        batches.Batches.next = make  # type: ignore[method-assign]
    return {**outcome, "seen": seen, "spoken": spoken}


def main() -> None:
    jobs = Path(sys.argv[1])
    torch.set_num_threads(1)
    with joined(["cpu"]) as ranks:
        outcomes = []
        for job in json.loads(jobs.read_text()):
            outcomes.append(run(job, ranks))
            jobs.with_name(f"{ranks.rank}.json").write_text(json.dumps(outcomes))
            if "break_on" in job:
                return


if __name__ == "__main__":
    main()
