"""A line of the log: figures of the steps since the last one, held-out losses, alarms, drawings of masks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import distributed
from trainer.data.stream import bottleneck
from trainer.game.health import alarms
from trainer.game.masking import binarise
from trainer.observe.example_ecg import synthetic_example
from trainer.observe.mask_figure import bands, ecg_with_masks
from trainer.run.engines import gradient_norm
from trainer.run.heldout import heldout_loss, shown_shard
from trainer.run.parts import Run
from trainer.run.problems import Problems


def log_line(run: Run, step: int, sums: dict[str, list[Tensor]], rates: dict[str, float]) -> None:
    """Logs the means of `sums` since the last line and, where due, held-out losses, probes and drawings."""
    cfg, speed = run.cfg, run.throughput.take()
    with run.throughput.paused():
        values = {name: torch.stack(many).mean() for name, many in sums.items()}
        if cfg.learn_temperature:
            values["temperature"] = run.engines["encoder"].module.temperature.value
        due = cfg.log.heldout_every and (step % cfg.log.heldout_every < cfg.log.every or step == run.total)
        if due and run.heldout is not None:
            values |= heldout_loss(run)
            if run.probe is not None:
                values |= run.probe.figures(run.engines["encoder"], run.scaling, run.world)
        norms = {f"grad_norm/{name}": gradient_norm(engine) for name, engine in run.engines.items()}
        worst = {"data_wait": speed.get("data_wait", 0.0), "queue_depth": -speed.get("queue_depth", 0.0)}
        worst = distributed.max_over_ranks(worst, run.world.device)
        if run.cache is not None:
            speed |= run.cache.meters()
        if "data_wait" in speed:
            speed |= {"data_wait": worst["data_wait"], "queue_depth": -worst["queue_depth"]}
            speed["mfu"] = speed["samples_per_s"] * run.mfu_per_ecg
            speed["data_mb_per_s"] = speed["samples_per_s"] * run.train.manifest.geometry.array_bytes / 1e6
            steps = run.cache.ahead if run.cache is not None else None
            waits = worst["data_wait"], -worst["queue_depth"]
            run.metrics.note(bottleneck(*waits, cfg.data.threads, cfg.data.ahead, steps))
        means = distributed.mean_over_ranks(values)
        said = alarms(means, cfg.contrast, step, run.total, cfg.game)
        for alarm in said:
            run.metrics.note(alarm)
        run.metrics.log(step, {**means, **rates, **norms, **speed, "alarms": len(said)})
        first_or_last = step <= cfg.log.every or step == run.total
        due = cfg.log.figure_every and (step % cfg.log.figure_every < cfg.log.every or first_or_last)
        if due and "masker" in run.engines:
            _draw_masks(run, step)


@torch.no_grad()
def _draw_masks(run: Run, step: int) -> None:
    """Draws the masks of a synthetic ECG of a view's length; every rank computes them (ZeRO 3 gathers parameters), rank
    0 draws.

    With `wandb.upload_ecgs` also those of the first training ECG.
    """
    manifest, samples = run.train.manifest, run.pairing.samples
    examples: dict[str, NDArray[np.floating]] = {"masks": synthetic_example(manifest.leads, samples, manifest.rate)}
    if run.cfg.wandb.upload_ecgs:
        first = sum(run.train.counts[: shown_shard(run.order)])
        examples["recording"] = run.train.read_mv(np.array([first]))[0, :, :samples]
    for name, example in examples.items():
        signal = torch.as_tensor(example, dtype=torch.float32, device=run.world.device)[None]
        raw = run.game.masks_of(run.engines["masker"], run.scaling(signal))
        masks = bands(binarise(raw, run.game.dials)[0].cpu().numpy(), samples)
        if run.world.is_main:
            path, problems = run.folder / "figures" / f"{name}-{step:06d}.png", Problems()
            title = f"masks at step {step} ({'training' if name == 'recording' else 'synthetic'} ECG)"
            with problems.noted():
                ecg_with_masks(example, masks, manifest.rate, manifest.leads, path, title)
                run.metrics.figure(step, name, path, recording=name == "recording")
            problems.warn(str(path))
