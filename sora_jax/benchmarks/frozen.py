"""What freezing saves: memory of the state and of the step, and time of a step, against a step that trains all.

  python -m sora_jax.benchmarks.frozen --json=frozen.json
  python -m sora_jax.benchmarks.frozen --config=configs/shapes.py --trainable='transformer\\.blocks\\.attn1\\..*'
  python -m sora_jax.benchmarks.frozen --lora_rank=4

The last is of adapters: they are trained, and the step that they are compared with trains all, without adapters.

Both steps are of one stage, on one pack of clips of noise, on one device, and take turns.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import Mesh

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.made_up_data import Steps, last_stage, noise_pack
from sora_jax.benchmarks.turns import CLOCKS, fewest_seconds
from sora_jax.checkpoints.disk_space import state_bytes
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.host_memory import use_huge_pages
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.tree import count_parameters
from sora_jax.experiment.kinds.diffusion import DiffusionKind
from sora_jax.experiment.kinds.recipe import Recipe
from sora_jax.experiment.recipes import recipe_of
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.nn.lora import LoraConfig
from sora_jax.train.loop import to_device

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CLOCK = _FLAGS.choice(
    "clock", "wall", CLOCKS, "`process` counts this process's seconds on a CPU that others use, too."
)
_CONFIG = _FLAGS.config("config", "configs/base.py", "Whose last diffusion stage is measured.")
_TRAINABLE = _FLAGS.string("trainable", r".*\.attn2\..*", "What is trained, as in stages.X.trainable.")
_DTYPE = _FLAGS.choice("frozen_dtype", "bfloat16", ["float32", "bfloat16"], "What the rest is kept in.")
_RANK = _FLAGS.integer("lora_rank", None, "Instead of --trainable: rank of adapters, which alone are trained.", least=1)
_TARGETS = _FLAGS.string("lora_targets", r"attn[12]\.to_(q|k|v|out)", "Of these adapters, as in transformer.lora.")
_CLIPS = _FLAGS.integer("clips", 512, "Clips that the pack is drawn from.", least=16)
_ROUNDS = _FLAGS.integer("rounds", 15, "Turns of each step; the fastest counts.", least=1)


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    settings = read_settings(_CONFIG.value)
    frozen = {"trainable": _TRAINABLE.value, "frozen_dtype": _DTYPE.value}
    lora = None
    if _RANK.value is not None:
        frozen["trainable"] = r".*\.lora_[ab]"
        lora = LoraConfig(rank=_RANK.value, alpha=None, targets=_TARGETS.value)
    figures = figures_of(settings, frozen, lora=lora, clips=_CLIPS.value, rounds=_ROUNDS.value, clock=_CLOCK.value)
    publish(figures, _JSON.value)


def figures_of(
    settings: Settings,
    frozen: dict[str, str],
    *,
    clips: int,
    rounds: int,
    clock: str,
    lora: LoraConfig | None = None,
) -> list[Figure]:
    """Returns what the step of the last diffusion stage needs where `frozen` of its settings are given, over all.

    With `lora` the frozen one has adapters.
    """
    name = last_stage(settings)
    recipes, mesh = recipes_of(settings, name, frozen, lora=lora), _mesh()
    pack, _ = noise_pack(settings, name, clips=clips)
    calls, memory = {}, {}
    with jax.set_mesh(mesh):
        for which, recipe in recipes.items():
            calls[which], memory[which] = _step(recipe, to_device(pack, mesh))
        seconds = fewest_seconds(calls, rounds=rounds, clock=clock)
    return [
        *state_figures(recipes),
        *_ratio("memory", memory, "bytes of the state and of all that the step holds besides"),
        *_ratio("step", {which: 1e3 * one for which, one in seconds.items()}, "milliseconds of a step"),
    ]


def recipes_of(
    settings: Settings, name: str, frozen: dict[str, str], *, lora: LoraConfig | None = None
) -> dict[str, Recipe]:
    """Returns the recipes of a stage, "full" and "frozen"."""
    stage = dataclasses.replace(DiffusionKind().of(settings, name), **frozen)
    transformer = dataclasses.replace(settings.transformer, lora=lora)
    partly = dataclasses.replace(settings, transformer=transformer, stages={**settings.stages, name: stage})
    return {"full": recipe_of(settings, name, _mesh()), "frozen": recipe_of(partly, name, _mesh())}


def state_figures(recipes: dict[str, Recipe]) -> list[Figure]:
    """Returns the memory of the states and of their checkpoints; nothing is computed."""
    states = {which: recipe.maker.abstract() for which, recipe in recipes.items()}
    held = {which: state_bytes(state) for which, state in states.items()}
    saved = {which: state_bytes(state.saved) for which, state in states.items()}
    trained = {which: state_bytes([state.params, state.ema, state.opt_state]) for which, state in states.items()}
    share = count_parameters(states["frozen"].params) / count_parameters(states["full"].params)
    return [
        Figure(name="trained_share", value=share, target=None, meaning="of the parameters"),
        *_ratio("state", held, "bytes of the state"),
        *_ratio("trained_state", trained, "bytes of what is trained, its moments and averages"),
        *_ratio("checkpoint", saved, "bytes of the arrays of a checkpoint"),
    ]


def _mesh() -> Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.local_devices()[:1])


def _step(recipe: Recipe, pack: dict[str, jax.Array]) -> tuple[Callable[[], object], float]:
    """Returns a call that does a step and waits for it, once compiled, and the bytes that the device needs for it."""
    compiled = recipe.program.lower(recipe.maker.abstract(), batch=pack, scalars=recipe.step.scalars).compile()
    stats, call = compiled.memory_analysis(), functools.partial(_done, Steps(compiled, recipe, pack))
    call()
    return call, stats.argument_size_in_bytes + stats.temp_size_in_bytes


def _done(steps: Steps) -> None:
    jax.block_until_ready(steps())


def _ratio(name: str, values: Mapping[str, float], meaning: str) -> list[Figure]:
    figures = [
        Figure(name=f"{name}_{which}", value=value, target=None, meaning=f"{meaning}, {which}")
        for which, value in values.items()
    ]
    ratio = values["frozen"] / values["full"]
    return [*figures, Figure(name=f"{name}_ratio", value=ratio, target="less than 1", meaning="the one over the other")]


if __name__ == "__main__":
    use_huge_pages()
    run_command(main, _FLAGS)
