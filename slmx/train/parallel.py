"""One model on several processes: copies whose gradients are averaged (DDP), or a part of each weight (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from slmx.registry import unknown_name
from slmx.train.ranks import Ranks

STRATEGIES = ("ddp", "fsdp")


def spread(model: nn.Module, strategy: str, ranks: Ranks) -> nn.Module:
    """The model as the loop calls it; alone it stays as it is.

    Raises:
        UsageError: an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    if ranks.world == 1:
        return model
    if strategy == "ddp":
        ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def bare(model: nn.Module) -> nn.Module:
    """The model within what spreads it."""
    return cast(nn.Module, model.module) if isinstance(model, nn.parallel.DistributedDataParallel) else model


@contextmanager
def exchange(model: nn.Module, *, now: bool) -> Iterator[None]:
    """Are the gradients of this backward exchanged between processes, or added up first?"""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    switch: Any = getattr(model, "set_requires_gradient_sync", None)
    if switch is not None:
        switch(now)
    yield


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers: the members of every list of modules."""
    return [block for one in model.modules() if isinstance(one, nn.ModuleList) for block in one]
