"""What benchmarks share that train several runs on one autoencoder and one set of latents."""

from pathlib import Path
from typing import Any

from sora_jax.core.config_files import load_config
from sora_jax.experiment.stage_settings import AUTOENCODER


def trial_config(file: str, *, clips: int, prompts: int, draws: int) -> Any:
    """Returns a config of the drawn world with so many clips, of which `prompts` are judged, `draws` samples of each.

    The worlds of all seeds are one, and nothing is sampled or measured on the way.
    """
    config = load_config(file)
    changes = {
        "shapes.num_clips": clips,
        "shapes.seed": 0,
        "log.samples_per_stage": 0,
        "log.validate_every": 0,
        "evaluation.prompts": prompts,
        "evaluation.draws": draws,
        "evaluation.tasks": 0,
    }
    config.update_from_flattened_dict(changes)
    return config


def on_base(config: Any, base: Path) -> Any:
    """Returns the config, which takes autoencoder and latents of the run in `base` now instead of making them."""
    config.run = tuple(name for name in config.run if config.stages[name].kind != AUTOENCODER)
    config.autoencoder.start_from = str(base)
    config.stages.prepare.start_from = str(base)
    return config
