"""python -m tests.watched: trainer.train, which tells on its first rank what it does when, a line each."""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from trainer.config import run_command
from trainer.runtime.module import RetrievalModule
from trainer.runtime.pipeline import IdExchange, Pipeline
from trainer.train import main


def _tell(owner: Any, name: str, what: str, step_of: Callable[..., int]) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def told(*arguments: Any, **keywords: Any) -> Any:
        if os.environ["RANK"] == "0":
            print(what, step_of(*arguments))
        return method(*arguments, **keywords)

    setattr(owner, name, told)


def _watch() -> None:
    steps: dict[IdExchange, int] = {}
    make = IdExchange.__init__

    def made(self: IdExchange, embeddings: Any, batch: Any, aside: Any) -> None:
        make(self, embeddings, batch, aside)
        steps[self] = batch.step

    IdExchange.__init__ = made  # type: ignore[method-assign]
    _tell(Pipeline, "_begin", "begin", lambda pipeline, batch, sizes: batch.step)
    _tell(IdExchange, "send", "send", lambda exchange: steps[exchange])
    _tell(RetrievalModule, "training_step", "step", lambda module, staged: staged.batch.step)
    _tell(RetrievalModule, "on_before_optimizer_step", "update", lambda module, optimizer: module.global_step)
    _tell(dist, "broadcast", "broadcast", lambda *arguments: 0)


if __name__ == "__main__":
    _watch()
    run_command(main)
