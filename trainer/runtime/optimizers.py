"""The dense optimizer, and the schedule of both learning rates."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel

from trainer.config import OptimizerConfig
from trainer.model.two_tower import dense_parameters


def schedule(config: OptimizerConfig, num_steps: int) -> Callable[[int], float]:
    """From a step to its factor on the learning rates, warm-up left out.

    Args:
        config: constant or cosine.
        num_steps: of the whole run.
    """
    if config.schedule == "constant":
        return lambda step: 1.0
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1)))


def dense_optimizer(
    model: nn.Module, config: OptimizerConfig, num_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR] | None:
    """AdamW for all that is no table, with its warm-up and schedule; None for a model of tables alone."""
    dense, (decayed, others) = dense_parameters(model), groups_of_names(model)
    if not dense:
        return None
    groups = [
        {"params": [dense[name] for name in names], "weight_decay": decay}
        for names, decay in ((decayed, config.dense_weight_decay), (others, 0.0))
        if names
    ]
    optimizer = torch.optim.AdamW(groups, config.dense_learning_rate)
    factor, warmup = schedule(config, num_steps), max(1, config.warmup_steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * factor(step)
    )


def groups_of_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the dense parameters that decay, and of the others; in this order an optimizer's state numbers them."""
    dense = dense_parameters(model)
    return [name for name, p in dense.items() if p.dim() > 1], [name for name, p in dense.items() if p.dim() <= 1]


def set_table_learning_rate(model: DistributedModelParallel, learning_rate: float) -> None:
    """Of the optimizer that is fused into the tables' backward pass."""
    for group in model.fused_optimizer.param_groups:
        group["lr"] = learning_rate
    model.fused_optimizer.step()  # hands the rate on to the kernels; the rows themselves were updated in backward
