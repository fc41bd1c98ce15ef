"""What the options that a run compiles its programs with are worth: time to compile, and to run.

  python -m sora_jax.benchmarks.compiling --json=compiling.json

The gradient of each stage of a config that trains, of an autoencoder on its largest bucket, compiled as the run does
(`core.compiling.run_often`) and as XLA does by itself, on one device. Nothing comes from a cache. On accelerators there
are no options, and both are alike.
"""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.made_up_data import noise_pack
from sora_jax.benchmarks.turns import fewest_seconds
from sora_jax.core import rng
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.compiling import run_often
from sora_jax.core.host_memory import use_huge_pages
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.tree import abstract_model
from sora_jax.experiment.programs import StepBatch
from sora_jax.experiment.recipes import recipe_of, train_kind
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import AUTOENCODER, TEXT_TO_VIDEO
from sora_jax.train.loop import to_device
from sora_jax.train.step import mean_gradient

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CONFIG = _FLAGS.config("config", "configs/base.py", "Whose stages are compiled.")
_ROUNDS = _FLAGS.integer("rounds", 15, "Turns of each program; the fastest counts.", least=1)
_FLAGS.rename("compiling_config", "config")
_FLAGS.rename("compiling_rounds", "rounds")


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    settings = read_settings(_CONFIG.value)
    jax.config.update("jax_enable_compilation_cache", False)
    stages = [*settings.stages_of(AUTOENCODER), *settings.stages_of(TEXT_TO_VIDEO)[-1:]]
    publish([one for stage in stages for one in figures_of(settings, stage, rounds=_ROUNDS.value)], _JSON.value)


def figures_of(settings: Settings, stage: str, *, rounds: int) -> list[Figure]:
    """Returns seconds to compile a stage's gradient, milliseconds to run it, both also over XLA's own."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        compiling, run = _gradient(settings, stage, mesh, run_often())
        compiling_own, run_own = _gradient(settings, stage, mesh, {})
        running = fewest_seconds({"run": run, "own": run_own}, rounds=rounds)
    over = "this over that of XLA's own options"
    return [
        Figure(name=f"{stage}_compile_s", value=compiling, target=None, meaning="seconds to compile"),
        Figure(name=f"{stage}_compile_ratio", value=compiling / compiling_own, target="at most 0.9", meaning=over),
        Figure(name=f"{stage}_ms", value=1e3 * running["run"], target=None, meaning="milliseconds of a gradient"),
        Figure(name=f"{stage}_ratio", value=running["run"] / running["own"], target="at most 1.0", meaning=over),
    ]


def _gradient(
    settings: Settings, stage: str, mesh: jax.sharding.Mesh, options: dict[str, int | str]
) -> tuple[float, Callable[[], object]]:
    """Returns the seconds that compiling the gradient took, and a call of it that returns when it is done."""
    recipe = recipe_of(settings, stage, mesh)
    structure, _, _ = abstract_model(recipe.maker.build)
    state, batch = recipe.maker.fresh(rng.key(0, "weights")), to_device(_batch(settings, stage), mesh)
    differentiate = functools.partial(mean_gradient, recipe.objective, structure, accumulate=1, frozen=state.frozen)
    key = rng.key(0, "noise")
    gradient = jax.jit(lambda params, batch: differentiate(params, batch, key)[0], compiler_options=options)
    lowered = gradient.lower(state.params, batch)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    jax.block_until_ready(compiled(state.params, batch))
    return seconds, lambda: jax.block_until_ready(compiled(state.params, batch))


def _batch(settings: Settings, stage: str) -> dict[str, np.ndarray]:
    if stage in settings.stages_of(TEXT_TO_VIDEO):
        return noise_pack(settings, stage, clips=512)[0]
    largest = max(train_kind(settings, stage).batches(settings, stage, segment_tokens=0), key=_numbers)
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 256, one.shape).astype(one.dtype) for name, one in largest.shapes.items()}


def _numbers(batch: StepBatch) -> int:
    return sum(int(np.prod(one.shape)) for one in batch.shapes.values())


if __name__ == "__main__":
    use_huge_pages()
    run_command(main, _FLAGS)
