"""What a run takes from another: averaged weights as the beginning of a stage, or a whole autoencoder.

Weights of a stage are matched by the names of parameters.

Only the first average is taken, which is what samples and scores are made with; all averages begin as these weights.
Moments and counters begin afresh: they belong to the steps that made them.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from sora_jax.checkpoints import leaves, manifest
from sora_jax.checkpoints.frozen import FROZEN, WeightSource, find_params, load_params
from sora_jax.checkpoints.reading import trusted_step
from sora_jax.checkpoints.retention import find_steps
from sora_jax.core.config import differences
from sora_jax.core.errors import StorageError, UserError
from sora_jax.experiment.stage_settings import TrainStage, read_rules
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.roles import VECTORS
from sora_jax.nn.lora import LoraConfig, is_factor
from sora_jax.train.state import StateMaker, TrainState, track_name
from sora_jax.train.workdir import Workdir

_FRESH = "fresh"
# They begin at zero, and another run may have had none.
_ROLES = f"transformer.{VECTORS}"
# The name under which the autoencoder of another run is kept: none of a stage.
_TAKEN = "taken_autoencoder"
# What may differ between two configs of an autoencoder that is the same.
_NOT_SHAPE = ("weights", "start_from", "remat")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Where the weights of a stage come from.

    Attributes:
      folder: Of checkpoints.
      step: One of them; None: the newest that can be trusted.
      track: The average.
      names: Of each parameter, its name there; None: it begins as initialised.
      prediction: What a generator there outputs (`diffusion.path.prediction`); None: its config does not say.
      adapter_scale: What the adapters that are taken from there are multiplied by; None: none are.
    """

    folder: epath.Path
    step: int | None
    track: str
    names: dict[str, str | None]
    prediction: str | None
    adapter_scale: float | None


def find_source(
    name: str, stage: TrainStage, params: Mapping[str, Any], files: WeightSource | None = None
) -> InitialWeights:
    """Returns where the weights of the stage `name` come from; `params` are its parameters, or their shapes.

    What is not there, and in the `files` of a public model, comes from these, and so it was there.

    Raises UserError saying all that does not fit: parameters that are not there, or of another shape or dtype, and
    rules that match nothing.
    """
    assert stage.start_from is not None
    folder, step, directory = _locate(name, stage.start_from)
    try:
        config = json.loads((directory / "config" / "metadata").read_text())
        track = track_name(config["ema"]["widths"][0])
        trained, frozen = find_params(directory, f"ema/{track}")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"stages.{name}.start_from: {directory} is no checkpoint of a run: {error}") from error
    # Frozen ones may be kept in another dtype, and are cast as they are read.
    there = trained | {n: jax.ShapeDtypeStruct(v.shape, jnp.float32) for n, v in frozen.items() if n not in trained}
    names, problems = _match(stage.start_rules, params)
    for ours, theirs in names.items():
        if theirs is None:
            continue
        new = is_factor(ours) or ours == _ROLES
        if theirs not in there and theirs == ours and (new or (files is not None and files.has(ours))):
            names[ours] = None  # an adapter begins as initialised where there was none, and so do vectors of roles
        elif theirs not in there:
            problems.append(f"{theirs}, for {ours}, is not there" if theirs != ours else f"{ours} is not there")
        elif leaves.form(there[theirs]) != leaves.form(params[ours]):
            alias = "" if theirs == ours else f"{theirs} "
            problems.append(f"{ours} is {leaves.form(params[ours])}, and {alias}there {leaves.form(there[theirs])}")
    if problems:
        raise UserError(
            f"stages.{name} cannot start from {directory}: {leaves.first_lines(problems)}; say in "
            f"stages.{name}.start_rules where to find a parameter, 'REGEX -> NAME', or to leave it, 'REGEX -> {_FRESH}'"
        )
    taken, lora = set(names.values()), config.get("transformer", {}).get("lora")
    if lost := [theirs for theirs in there if is_factor(theirs) and theirs not in taken and theirs not in params]:
        raise UserError(
            f"stages.{name} cannot start from {directory}: it has adapters that this config has not, and without them "
            f"its weights are not what was trained ({leaves.first_lines(lost)}): give transformer.lora what it says "
            f"there, {lora}, or start from the run that the adapters were trained on"
        )
    prediction = config.get("diffusion", {}).get("path", {}).get("prediction")
    scale = LoraConfig(**lora).scale if lora and any(map(is_factor, filter(None, taken))) else None
    return InitialWeights(
        folder=folder, step=step, track=track, names=names, prediction=prediction, adapter_scale=scale
    )


def inherit(name: str, stage: TrainStage, maker: StateMaker, key: jax.Array) -> TrainState:
    """Returns the state that the stage `name` begins with; `key` initialises what it does not take from its source.

    Raises UserError as `find_source`, before anything is compiled, and as `load_tree`.
    """
    shapes = maker.abstract_params()
    source = find_source(name, stage, shapes, maker.source)
    wanted = {theirs: shapes[ours] for ours, theirs in source.names.items() if theirs is not None}
    taken, step = load_params(source.folder, f"ema/{source.track}", wanted, step=source.step)
    fresh = maker.fresh(key)
    params = {**fresh.frozen, **fresh.params}
    for ours, theirs in source.names.items():
        if theirs is not None:
            params[ours] = jax.device_put(taken[theirs], shapes[ours].sharding)
    left = sum(theirs is None for theirs in source.names.values())
    logging.info(
        "%s: starting from the averaged weights of step %d in %s, %d of %d parameters as initialised",
        name,
        step,
        source.folder,
        left,
        len(params),
    )
    # Distinct buffers, as two parameters may come from one: the state is donated, and a buffer may be donated once.
    params, frozen = maker.split(jax.tree.map(jnp.copy, params))
    ema = {track: jax.tree.map(jnp.copy, params) for track in fresh.ema}
    return dataclasses.replace(fresh, params=params, ema=ema, frozen=frozen)


def take_autoencoder(workdir: Workdir, config: AutoencoderConfig, path: str) -> None:
    """Copies the trained autoencoder of the run in `path`, and the statistics of its latents, to `workdir`, once.

    From then on the other run may be removed. Raises UserError where it has none, or one of another shape than
    `config`, StorageError where it cannot be trusted or written.
    """
    if (workdir.path / "latents.json").exists():
        return
    source = Workdir(path)
    saved = source.config()
    if not (source.path / "latents.json").exists() or saved["autoencoder"].get("weights") is not None:
        raise UserError(
            f"autoencoder.start_from: {source.path} has trained no autoencoder to the end: name a run that has, or "
            "give public weights as autoencoder.weights"
        )
    shape = json.loads(json.dumps(dataclasses.asdict(config)))
    theirs = {name: value for name, value in saved["autoencoder"].items() if name not in _NOT_SHAPE}
    if problems := differences(theirs, {name: value for name, value in shape.items() if name not in _NOT_SHAPE}):
        raise UserError(
            f"autoencoder.start_from: {source.path} has another autoencoder than this config ({'; '.join(problems)}): "
            "give the config its values"
        )
    measured = source.read_json("latents.json", "stage", "mean", "scale")
    step = trusted_step(source.checkpoints(measured["stage"]))
    target = workdir.checkpoints(_TAKEN) / step.name
    try:
        shutil.rmtree(target.parent, ignore_errors=True)
        # What its last stage froze lies beside the steps.
        for part in [step, step.parent / FROZEN]:
            if part.exists():
                shutil.copytree(part, target.parent / part.name)
    except OSError as error:
        raise StorageError(f"{step} cannot be copied to {target}: {error}") from error
    track = measured.get("track", track_name(saved["ema"]["widths"][0]))
    workdir.write_json("latents.json", {**measured, "stage": _TAKEN, "track": track, "from": str(source.path)})
    logging.info("the autoencoder is that of %s, step %s of %s", source.path, step.name, measured["stage"])


def _locate(name: str, path: str) -> tuple[epath.Path, int | None, epath.Path]:
    """Returns (folder of checkpoints, step or None, the checkpoint to look into)."""
    given = epath.Path(path).absolute()
    if given.name.isdecimal() and (given / manifest.MANIFEST).exists():
        return given.parent, int(given.name), given
    steps = [step for step in find_steps(given) if (given / str(step) / manifest.MANIFEST).exists()]
    if not steps:
        raise UserError(
            f"stages.{name}.start_from: there is no checkpoint in {given}: give a folder like "
            f"runs/other/checkpoints/{name}, or one step in it"
        )
    return given, None, given / str(max(steps))


def _match(rules: tuple[str, ...], params: Mapping[str, Any]) -> tuple[dict[str, str | None], list[str]]:
    """Returns (each parameter's name there, None for those left as they are; what is wrong with rules)."""
    read = read_rules(rules, given=True)
    used: set[int] = set()
    problems = []

    def name(ours: str) -> str | None:
        for number, (pattern, replacement) in enumerate(read):
            found = pattern.fullmatch(ours)
            if found is None:
                continue
            used.add(number)
            try:
                return None if replacement == _FRESH else found.expand(replacement)
            except (re.error, IndexError) as error:
                problems.append(f"the rule {rules[number]!r}: {error}")
        return ours

    names = {ours: name(ours) for ours in params}
    idle = [rule for number, rule in enumerate(rules) if number not in used]
    problems += [f"the rule {rule!r} matches no parameter that an earlier one leaves" for rule in idle]
    return names, list(dict.fromkeys(problems))
