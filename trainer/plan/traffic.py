"""What processes send each other in a step: bytes, taken as rings, and calls. Formulas: docs/planning.md."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.plan.memory import FP32

REUSED = 10**9  # DeepSpeed's stage3_max_reuse_distance: fewer parameters are gathered once a step
KEPT = 10**5  # DeepSpeed's stage3_param_persistence_threshold: smaller tensors are gathered one by one
LOSS = 3  # embeddings and patients gathered, the gradient scattered


def ring(stage: int, parameters: Sequence[int], world: int, accumulation: int = 1) -> float:
    """Bytes of weights and gradients that each process receives in a step, all collectives being rings.

    With n bytes of tensors an all-reduce moves 2 n (W - 1) / W, an all-gather or reduce-scatter half of that (Patarasuk
    and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). DeepSpeed 0.19.8 all-reduces gradients at stages 0 to 2, at 2 for
    each contrast batch; at 1 and 2 it gathers the updated weights besides; at 3 it gathers the weights (twice if there
    are more than 1e9) and reduce-scatters the gradients for each contrast batch.
    """
    whole = FP32 * sum(parameters)
    gathers = 2 if sum(parameters) > REUSED else 1
    moved = {0: 2.0, 1: 3.0, 2: 2.0 * accumulation + 1, 3: (gathers + 1.0) * accumulation}[stage]
    return moved * whole * (world - 1) / world


def exchanged(rows: float, width: int, world: int) -> float:
    """Bytes that each process receives for NT-Xent: both views' embeddings of all others, and the gradient back.

    rows: ECGs of a process in a contrast batch; width: of an embedding. Numbers of patients (int64) go with them.
    """
    return (world - 1) * 2 * rows * (2 * FP32 * width + 8)


def calls(stage: int, tensors: Sequence[Sequence[int]], accumulation: int = 1) -> int:
    """Collectives of a step: those of each player's tensors (numbers of parameters) and of the loss.

    DeepSpeed 0.19.8: gradients of a player go in one call (up to 5e8 numbers), so do the weights that stages 1 and 2
    gather and, from stage 1 on, the norm. At stage 3 a player's large tensors are gathered in one (up to 5e7 numbers)
    and each small one by itself. One more tells all whether the losses are finite.
    """
    players = len(tensors)
    once = LOSS * accumulation + 1
    if stage < 3:
        return once + {0: players, 1: 3 * players, 2: (accumulation + 2) * players}[stage]
    small = sum(size <= KEPT for player in tensors for size in player)
    large = sum(any(size > KEPT for size in player) for player in tensors)
    return once + accumulation * (players + large) + players + small
