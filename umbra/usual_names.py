"""What other tools call a config key, and what it is called here: for the hint at an unknown key."""

from __future__ import annotations

from collections.abc import Collection

_KEYS = {
    "optim.encoder.lr": ("learning_rate", "lr"),
    "optim.encoder.weight_decay": ("weight_decay", "wd"),
    "batch.global": ("batch_size", "bs", "train_batch_size"),
    "encoder.name": ("model", "arch", "architecture", "backbone", "network"),
    "data.path": ("dataset", "data_dir", "data_path", "shards"),
    "run": ("run_dir", "checkpoint_dir", "output_dir", "output", "out", "save_dir"),
    "wandb.mode": ("wandb.enabled", "wandb.enable", "wandb.disabled"),
    "optim.schedule": ("scheduler", "lr_scheduler", "lr_schedule"),
    "data.threads": ("num_workers", "n_workers", "workers", "num_threads", "data.num_workers"),
    "mode": ("method", "protocol"),
    "init": ("pretrained", "init_from", "from_pretrained", "weights", "init_weights", "finetune_from", "load_from"),
    "steps": ("max_steps", "num_steps", "iterations"),
    "epochs": ("num_epochs", "max_epochs", "epoch"),
    "rate": ("sample_rate", "sampling_rate", "sampling_frequency", "samplerate", "frequency", "fs", "sr", "hz"),
    "seconds": ("length", "duration", "window", "window_seconds", "segment_length"),
    "workers": ("num_workers", "n_workers", "jobs", "n_jobs", "processes"),
    "input": ("input_dir", "in", "source_dir", "data_dir", "root"),
    "output": ("output_dir", "out", "out_dir", "destination"),
}
_CONFIG = ("config", "config_file", "cfg", "yaml", "task")
_DEVICES = ("device", "devices", "gpu", "gpus", "num_gpus", "n_gpus", "nodes", "num_nodes", "world_size", "processes")


def usual_name(key: str, known: Collection[str]) -> str:
    """A hint at what is meant by `key` among the `known` keys; empty if its name says nothing."""
    word = key.lower().replace("-", "_")
    if found := next((ours for ours, theirs in _KEYS.items() if word in theirs and ours in known), ""):
        return f"; did you mean '{found}'?"
    if word in _CONFIG:
        return "; a config file is given by its path alone: a word of its own, without a key"
    if word in _DEVICES and "zero" in known:  # a pre-training run
        return "; devices and processes are the launcher's: deepspeed --num_gpus N, CUDA_VISIBLE_DEVICES=..."
    return ""
