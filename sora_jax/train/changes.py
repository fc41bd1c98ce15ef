"""What of its config a run may change as it goes on: what no weight depends on, or none depends on yet."""

import fnmatch
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_jax.checkpoints.manifest import MANIFEST
from sora_jax.core.config import differences

# How often it reports, saves and shows, what it samples, how it is judged, where and in which pieces it computes, when
# it gives up. `*` stands for anything.
_FREE = (
    "log.*",
    "sampling.*",
    "captioning.*",
    "recaption.*",
    "evaluation.*",
    *("scaling", "scaling.*"),
    "checkpoint.*",
    "ema.snapshots",
    "mesh.*",
    "model",  # what was frozen of it, or encoded with it, is known by its digest
    "codec.*",
    "text.weights",  # may move: their digest is compared
    "autoencoder.remat",
    "transformer.remat",
    "transformer.attention",
    "transformer.exchange",
    "guard.max_skipped_steps",
    "guard.max_rewinds",
    "stages.*.crops.cache_mb",
    "stages.*.batch",  # of a prepare stage
    "stages.*.clips_per_shard",
    *("data.readers", "more_data.*.readers"),
    *("data.max_bad_share", "more_data.*.max_bad_share"),
    *("data.curation.table", "more_data.*.curation.table"),
)
# Where the clips of a collection are, and how they are told: they may move, but must be the same.
_PLACE = re.compile(r"(data|more_data\.(?P<name>[^.]+))\.(path|captions)|shapes\.caption_faults")
# Keys that came later, at the value that says what was done before: configs of older runs lack them.
_LATER = {
    "text": {"encoder": "bytes"},
    "transformer": {"lora": {"rank": None, "alpha": None, "targets": None}},
    "context": {
        **{"kinds": [], "dropout": 0.1, "max_level": 0.05, "blind": False},
        "low": {"space": [1, 2], "time": [1, 2, 4], "max_level": 0.6},
    },
    "sampling": {"forget_context": False, "refiner": {"level": 0.15, "steps": None, "tile": None}},
    "captioner": {
        **{"width": 128, "depth": 3, "heads": 4, "mlp_width": 512, "unimodal": 2, "multimodal": 2, "encoder": "clip"},
        **{"generative_queries": 0, "local_width": 64, "embedding": 128, "rope_theta": 100.0},
        **{"attention": "auto", "exchange": "gather", "remat": "none"},
    },
    "captioner_loss": {
        "caption": 2.0,
        "contrastive": 1.0,
        "temperature": 0.07,
        "contrast": "softmax",
        "word_dropout": 0.3,
    },
    "captioning": {
        **{"method": "greedy", "beams": 4, "length_penalty": 0.6},
        **{"temperature": 1.0, "top_p": 0.9, "no_repeat": 4},
    },
    "recaption": {
        **{"batch": 128, "mix": {"own": 0.05, "short": 0.3, "detailed": 0.65}, "min_words": 1, "max_repeats": 2},
        **{"max_unclean": 0, "min_direction": 0.1},
        "server": {"frames": 8, "side": 384, "tiled": False, "in_flight": 8, "timeout": 120.0, "retries": 5},
    },
}
# Keys of an earlier version that are gone, by their group: where they said None, nothing is lost.
_GONE = {"transformer": ("embedding",), "diffusion": ("embedding_dropout",)}
# On what hang the shapes of the weights of a network, or what they mean: under other values no stage starts from them.
_NETWORK = (
    *("autoencoder.", "transformer.", "captioner."),
    *("text.encoder", "text.width", "text.depth", "text.heads", "diffusion.path.prediction"),
)
# Differences listed in the message about a workdir of another config; a typical mistake changes one or two keys.
_MOST_LISTED = 5


def completed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config, also of an earlier version, with the keys that came later and no unused ones that are gone."""
    kept = {**tree, **{key: {**group, **tree.get(key, {})} for key, group in _LATER.items()}}
    for key, gone in _GONE.items():
        kept[key] = {name: value for name, value in kept.get(key, {}).items() if name not in gone or value is not None}
    return with_optimizers(kept)


def moved(lines: Sequence[str], *, main: str) -> dict[str, str]:
    """Returns, of the lines of `core.config.differences`, those about where a collection's clips are, by its name."""
    found = ((_PLACE.fullmatch(_key(line)), line) for line in lines)
    return {match["name"] or main: line for match, line in found if match}


def bound(saved: Mapping[str, Any], config: Mapping[str, Any], *, begun: Collection[str]) -> list[str]:
    """Returns the lines of `core.config.differences` that something depends on; `begun` are stages that have begun.

    Of other stages everything may change, and whether there are any.
    """
    return [line for line in differences(saved, config) if not _is_free(_key(line), saved, config, begun)]


def refusal(
    path: Path, lines: Sequence[str], *, saved: Mapping[str, Any], config: Mapping[str, Any], begun: Sequence[str]
) -> str:
    """Returns what to say of a workdir of another config, and how to begin another run with what is trained there."""
    listed = "; ".join(lines[:_MOST_LISTED])
    more = f" and {len(lines) - _MOST_LISTED} more" if len(lines) > _MOST_LISTED else ""
    said = f"{path} belongs to another config ({listed}{more}): restore the old values, or give another --workdir"
    # What trains after the clips were prepared goes on from these clips.
    trains = [_trains(saved["stages"][name]) for name in begun]
    prepare = trains.index(False) if False in trains else len(begun)
    later = [name for name in begun[prepare:] if any((path / "checkpoints" / name).glob(f"*/{MANIFEST}"))]
    if not later or not {begun[prepare], later[-1]} <= config["stages"].keys() or _is_other_network(lines, saved):
        return said
    last = later[-1]
    flags = [
        f'--config.run=("{begun[prepare]}","{last}")',
        f"--config.stages.{last}.start_from={path}/checkpoints/{last}",
    ]
    if saved["autoencoder"].get("weights") is None:
        flags.append(f"--config.autoencoder.start_from={path}")
    return f"{said}, to which {shlex.join(flags)} gives what is trained here"


def _is_other_network(lines: Sequence[str], saved: Mapping[str, Any]) -> bool:
    """Returns whether differences make weights useless; adapters may be added to a network that has none."""
    kept = "transformer.lora." if saved["transformer"]["lora"]["rank"] is None else ()
    return any(line.startswith(_NETWORK) and not line.startswith(kept) for line in lines)


def with_optimizers(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with `optimizer` in each stage that trains and has none, as in configs of earlier versions."""
    stages = tree.get("stages")
    if not isinstance(stages, Mapping) or "optimizer" not in tree:
        return {**tree}
    own = {name: {"optimizer": tree["optimizer"], **stages[name]} for name in stages if _trains(stages[name])}
    return {**tree, "stages": {**stages, **own}}


def _trains(stage: Any) -> bool:
    """Whether a stage trains, whatever its kind: it then has a learning rate."""
    return isinstance(stage, Mapping) and "schedule" in stage


def _key(line: str) -> str:
    return line.partition(": ")[0]


def _is_free(key: str, saved: Mapping[str, Any], config: Mapping[str, Any], begun: Collection[str]) -> bool:
    if any(fnmatch.fnmatchcase(key, pattern) for pattern in _FREE) or _PLACE.fullmatch(key):
        return True
    if key == "run":
        old, new = ([name for name in tree.get("run", ()) if name in begun] for tree in (saved, config))
        return old == new == list(config.get("run", ()))[: len(new)]
    group, _, rest = key.partition(".")
    return group == "stages" and rest.partition(".")[0] not in begun
