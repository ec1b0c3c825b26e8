"""One module under DeepSpeed: AdamW, ZeRO stage, clipping, accumulation, bf16 autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.config import PlayerConfig, PretrainConfig
from trainer.game.temperature import Temperature
from umbra.errors import UserError


def uses_bf16(precision: str, device: torch.device) -> bool:
    """`auto` is bf16 on GPUs that support it, fp32 elsewhere. Raises `UserError` for bf16 on a GPU without it."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bf16" and device.type == "cuda" and not able:
        raise UserError("precision=bf16: this GPU does not support bf16; use precision=fp32")
    return precision == "bf16" or (precision == "auto" and able)


def make_engine(module: nn.Module, player: PlayerConfig, cfg: PretrainConfig, device: torch.device) -> Any:
    """A DeepSpeed engine around `module` (weights stay fp32 at any precision)."""
    import deepspeed

    optimizer = torch.optim.AdamW(_groups(module), lr=player.lr, weight_decay=player.weight_decay, fused=True)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=_deepspeed_config(player, cfg, uses_bf16(cfg.precision, device))
    )
    if cfg.zero == 0:
        _keep_norm(engine)
    return engine


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """All parameters; a learned temperature is in a separate group without weight decay."""
    free = [p for m in module.modules() if isinstance(m, Temperature) for p in m.parameters()]
    decayed = [p for p in module.parameters() if all(p is not q for q in free)]
    return [{"params": decayed}] + ([{"params": free, "weight_decay": 0.0}] if free else [])


def _keep_norm(engine: Any) -> None:
    """Makes the engine keep the gradient norm, which it clips by but does not store without ZeRO."""

    def clip() -> None:
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(
            engine.module.parameters(), engine.gradient_clipping()
        )

    engine.clip_fp32_gradients = clip


def _deepspeed_config(player: PlayerConfig, cfg: PretrainConfig, bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, only used by its own data loader
        "gradient_accumulation_steps": cfg.accumulation,
        "gradient_clipping": player.clip,
        "zero_optimization": {"stage": cfg.zero},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def set_learning_rate(engine: Any, lr: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def skip_step(engine: Any) -> None:
    """Ends the step of an engine without an update; its gradients are dropped, also those accumulated.

    With ZeRO by DeepSpeed's own way for a gradient norm that is not finite.
    """
    stage, infinite = engine.zero_optimization_stage(), torch.tensor(float("inf"))
    if stage == 0:
        engine.module.zero_grad(set_to_none=True)  # AdamW passes over parameters without a gradient
        engine.step()
        return
    name = "scaled_global_norm" if stage < 3 else "_get_norm_groups"
    setattr(engine.optimizer, name, lambda *_, **__: infinite if stage < 3 else [infinite])
    try:
        engine.step()
    finally:
        delattr(engine.optimizer, name)  # the method of its class again


def gradient_norm(engine: Any) -> float:
    """The global gradient norm of the last step before clipping (NaN where DeepSpeed did not compute it)."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)
