"""Several processes that train one model: started by torchrun's launcher, joined in a process group, ended together.

    def work(ranks: Ranks) -> None:                      # one process: the same face, and nothing is sent
        gradient = ranks.add(gradient)
        if signal := ranks.highest(stop.signal): ...

    wanted = devices("auto", gpus="0,1")                 # a device for each process
    spread(wanted, show_plan, work)                      # the same command in each process; returns when all have ended

Every process takes the same steps in the same order, so what all of them see (a stop, a loss that is no number) is one
decision. What a single process meets ends the others at their next exchange.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from slmx.errors import FAILED, INTERRUPTED, TERMINATED, SlmxError, UsageError
from slmx.models.device import ask_for_huge_pages, pick_device

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # while rank 0 validates the others wait; a process that died is noticed without it
RUN_ID = "slmx-launch"
GRACE_SECONDS = 600  # from a signal on: the time to finish a step and save


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run: its number, how many there are, and its device.

    Example:
        >>> Ranks(torch.device("cpu")).highest(3)
        3
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Is this the process that speaks and writes?"""
        return self.rank == 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, put into `tensor`; the same bits in each of them, and in each run."""
        if self.world > 1:
            with _others_may_end():
                distributed.all_reduce(tensor)
        return tensor

    def highest(self, number: int) -> int:
        """The greatest number that a process gave: for flags, and for the signal that asks to stop."""
        if self.world == 1:
            return number
        told = torch.tensor(number)
        with _others_may_end():
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return int(told)

    def once(self, work: Callable[[], T]) -> T:
        """What rank 0 makes of `work` while the others wait, given to all; its SlmxError ends all."""
        if self.world == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer = [work(), None]
            except SlmxError as error:
                answer = [None, error]
        told = [answer[0] if answer[1] is None else None, answer[1] is not None]
        with _others_may_end():
            distributed.broadcast_object_list(told)
        if told[1]:
            raise self.shared(answer[1] or SlmxError(""))
        return cast(T, told[0])

    def together(self, work: Callable[[], T]) -> T:
        """`work` in every process, with nothing sent meanwhile; an SlmxError of any ends all, and is said once."""
        error: SlmxError | None = None
        try:
            done = work()
        except SlmxError as caught:
            error = caught
        speaker = self.highest(self.world - self.rank if error else 0)
        if speaker:
            raise error if error and speaker == self.world - self.rank else SystemExit(0)
        return done

    def shared(self, error: SlmxError) -> BaseException:
        """What to raise for an error that every process meets at the same place: rank 0 says it, the others go."""
        return error if self.main else SystemExit(0)


def inside() -> bool:
    """Was this process started by torchrun, or by something that keeps to its names?"""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched() -> bool:
    """Was it `launch` that started this process, and not a torchrun by hand?"""
    return os.environ.get("TORCHELASTIC_RUN_ID") == RUN_ID


def devices(device: str, gpus: str = "", num_gpus: int | None = None) -> list[str]:
    """A device for each process that --device, --gpus ("0,1": ids) and --num-gpus (a count) ask for.

    `--num-gpus 2 --device cpu` means two processes on the processor.

    Raises:
        UsageError: options that contradict each other, or devices that this machine does not have.
    """
    if gpus and num_gpus:
        raise UsageError("--gpus and --num-gpus both say how many.", hint="--gpus 0,1 are ids, --num-gpus 2 a count.")
    if gpus and device not in ("auto", "cuda"):
        raise UsageError(f"--gpus names cards, --device {device} something else.", hint="Leave out one of them.")
    if gpus:
        ids = [part.strip() for part in gpus.split(",") if part.strip()]
        if not ids or not all(one.isdigit() for one in ids) or len(set(ids)) < len(ids):
            raise UsageError(f"--gpus takes the ids of cards, each once, not {gpus!r}.", hint="--gpus 0,1")
        wanted = [f"cuda:{one}" for one in ids]
    elif num_gpus and device.partition(":")[0] != "cpu":
        wanted = [f"cuda:{number}" for number in range(num_gpus)]
    else:
        wanted = [device] * (num_gpus or 1)
    for one in wanted:
        pick_device(one)
    return wanted


def launch(processes: int, argv: Sequence[str]) -> None:
    """Run the same command line in some processes of this machine, under torchrun's launcher, until all have ended.

    A signal to this process reaches each of them once; they finish their step, save, and end.

    Raises:
        SlmxError: with the exit code of the process that failed first; that one has said why.
    """
    import logging
    from tempfile import TemporaryDirectory

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes themselves say what happened
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS))
    try:
        with TemporaryDirectory(prefix="slmx-launch-") as logs:  # the launcher would leave a folder of its own behind
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=RUN_ID,
                rdzv_backend="c10d",
                rdzv_endpoint="127.0.0.1:0",
                max_restarts=0,
                start_method="spawn",
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            elastic_launch(config, sys.executable)("-m", "slmx", *argv)
    except SignalException as error:
        raise SystemExit(INTERRUPTED if error.sigval.name == "SIGINT" else TERMINATED) from None
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else FAILED) from None


def spread(wanted: Sequence[str], show_plan: Callable[[], None], work: Callable[[Ranks], None]) -> None:
    """Run `work` on every device that is wanted: here if it is one, else in processes with this one's command line.

    Args:
        wanted: of `devices`.
        show_plan: called once, before processes are started: what is wrong is then said once.
    """
    if len(wanted) > 1 and not inside():
        show_plan()
        launch(len(wanted), sys.argv[1:])
        return
    with joined(wanted) as ranks:
        work(ranks)


@contextmanager
def joined(wanted: Sequence[str]) -> Iterator[Ranks]:
    """This process in its group for the length of a block; alone where torchrun did not start it.

    Args:
        wanted: a device for each process of this machine, or one for all: "auto" and "cuda" are then the card of the
            process's number where there are cards, else the processor.
    """
    ask_for_huge_pages()
    if not inside():
        yield Ranks(pick_device(wanted[0]))
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = _own_device(wanted, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(device, rank, world)
    except SlmxError as error:
        raise error if not rank else _of_rank(error, rank, world) from None
    distributed.destroy_process_group()


def _of_rank(error: SlmxError, rank: int, world: int) -> SlmxError:
    return SlmxError(f"Process {rank} of {world}: {error.what}", hint=error.hint, code=error.code)


def _own_device(wanted: Sequence[str], number: int) -> torch.device:
    if len(wanted) > 1:
        return pick_device(wanted[number])
    kind, _, index = wanted[0].partition(":")
    if kind in ("auto", "cuda") and not index and torch.cuda.is_available():
        return pick_device(f"cuda:{number}")
    return pick_device(wanted[0])


@contextmanager
def _others_may_end() -> Iterator[None]:
    """Turns the error of an exchange, which means that a process is gone, into one that a user understands."""
    try:
        yield
    except RuntimeError as error:
        raise SlmxError(
            "Another process of this run ended, so this one ends too.",
            hint=f"Its own error tells why. ({str(error).splitlines()[0][:120]})",
        ) from error
