"""A run of `slmx train retriever` in this process, for its tests."""

from __future__ import annotations

import signal
from collections.abc import Callable

from slmx.events import Listener, Notice, Progress, nobody
from slmx.signals import Stop
from slmx.train.plan import plan_training
from slmx.train.retriever import TrainReport, train
from slmx.train.retriever_options import TrainOptions

Asked = Callable[..., TrainOptions]


def run(options: TrainOptions, *, stop_at: int = 0, listen: Listener = nobody) -> TrainReport:
    """Train; at step `stop_at` somebody sends SIGTERM."""
    stop = Stop()

    def told(event: Progress | Notice) -> None:
        if isinstance(event, Progress) and event.task == "train" and event.done == stop_at:
            stop.signal = signal.SIGTERM
        listen(event)

    return train(plan_training(options, listen), stop=stop, listen=told)
