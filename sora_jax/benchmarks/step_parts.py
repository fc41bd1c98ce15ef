"""Where a train step of the transformer goes: its parts alone, and its arithmetic against its own largest product.

  python -m sora_jax.benchmarks.step_parts --json=step_parts.json
  python -m sora_jax.benchmarks.step_parts --config=configs/shapes.py --stage=videos

The step is that of a config's stage, on one pack of clips with the sizes and captions of the drawn world and noise for
latents, on one device. Parts that are compiled alone may take longer than inside the step, where XLA runs some side by
side.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.made_up_data import Steps, last_stage, noise_pack
from sora_jax.benchmarks.turns import CLOCKS, fewest_seconds
from sora_jax.core import rng
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.host_memory import use_huge_pages
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.tree import abstract_model
from sora_jax.experiment.kinds.recipe import Recipe
from sora_jax.experiment.recipes import recipe_of
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.train.loop import to_device
from sora_jax.train.state import update_ema
from sora_jax.train.step import digest_and_norm, mean_gradient

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CLOCK = _FLAGS.choice(
    "clock", "wall", CLOCKS, "`process` counts this process's seconds on a CPU that others use, too."
)
_CONFIG = _FLAGS.config("config", "configs/base.py", "Whose step is taken apart.")
_STAGE = _FLAGS.string("stage", None, "Which stage of it; by default the last diffusion stage.")
_CLIPS = _FLAGS.integer("clips", 512, "Clips that the pack is drawn from.", least=16)
_ROUNDS = _FLAGS.integer("rounds", 15, "Turns of each part; the fastest counts.", least=1)
_FLAGS.rename("parts_config", "config")
_FLAGS.rename("parts_stage", "stage")
_FLAGS.rename("parts_clips", "clips")
_FLAGS.rename("parts_rounds", "rounds")

# Products in a row, so that starting the program does not count.
_PRODUCTS = 20
_MEANINGS = {
    "forward": "loss alone",
    "gradient": "loss and gradient",
    "optimizer": "gradient to direction, moments included",
    "averages": "of the weights",
    "digest": "and norm of the weights",
    "step": "the whole train step",
}


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    settings = read_settings(_CONFIG.value)
    stage = stage_of(settings, _STAGE.value)
    figures = figures_of(settings, stage, clips=_CLIPS.value, rounds=_ROUNDS.value, clock=_CLOCK.value)
    publish(figures, _JSON.value)


def stage_of(settings: Settings, name: str | None) -> str:
    """Returns the name of a diffusion stage, by default the last one of the run; UserError where there is none such."""
    last, found = last_stage(settings), settings.stages_of(TEXT_TO_VIDEO)
    if name is not None and name not in found:
        raise UserError(f"--stage={name} is none of the diffusion stages of the config: {', '.join(found)}")
    return name or last


def figures_of(settings: Settings, stage: str, *, clips: int, rounds: int, clock: str) -> list[Figure]:
    """Returns the milliseconds of each part of the stage's step, its GFLOP/s and those of its largest product."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.local_devices()[:1])
    recipe = recipe_of(settings, stage, mesh)
    pack, flops = noise_pack(settings, stage, clips=clips)
    with jax.set_mesh(mesh):
        calls = _parts(recipe, to_device(pack, mesh))
        product, flops_of_product = _largest_product(settings)
        for call in (product, *calls.values()):
            call()
        seconds = fewest_seconds({"product": product, **calls}, rounds=rounds, clock=clock)
    figures = [
        Figure(name=f"{name}_ms", value=1e3 * seconds[name], target=None, meaning=f"{meaning}, milliseconds")
        for name, meaning in _MEANINGS.items()
    ]
    reached, possible = flops / seconds["step"], flops_of_product / seconds["product"]
    return [
        *figures,
        Figure(name="step_gflops", value=reached / 1e9, target=None, meaning="model FLOPs of the step, 1e9 a second"),
        Figure(name="product_gflops", value=possible / 1e9, target=None, meaning="its largest product, 1e9 a second"),
        Figure(
            name="step_over_product", value=reached / possible, target="at least 0.5", meaning="the one over the other"
        ),
    ]


def _parts(recipe: Recipe, pack: dict[str, jax.Array]) -> dict[str, Callable[[], object]]:
    """Returns a call for each part, which returns when the device is done."""
    structure, _, axes = abstract_model(recipe.maker.build)
    optimizer = recipe.maker.optimizer(axes)
    state = recipe.maker.fresh(rng.key(0, "benchmark"))
    differentiate = functools.partial(mean_gradient, recipe.objective, structure, accumulate=1, frozen=state.frozen)
    key = rng.key(0, "noise")
    gradient = jax.jit(lambda params: differentiate(params, pack, key)[0])
    # What nobody asks for is not computed: without the gradient this is the forward pass.
    forward = jax.jit(lambda params: differentiate(params, pack, key)[1])
    direct, digest = jax.jit(optimizer.update), jax.jit(digest_and_norm)
    average = jax.jit(lambda ema, params: update_ema(ema, params, jnp.int32(10), recipe.maker.ema))
    made = gradient(state.params)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(state.params),
        "gradient": lambda: gradient(state.params),
        "optimizer": lambda: direct(made, state.opt_state, state.params),
        "averages": lambda: average(state.ema, state.params),
        "digest": lambda: digest(state.params),
        "step": Steps(recipe.program, recipe, pack),
    }
    return {name: functools.partial(_done, call) for name, call in calls.items()}


def _done(call: Callable[[], Any]) -> None:
    jax.block_until_ready(call())


def _largest_product(settings: Settings) -> tuple[Callable[[], None], float]:
    """Returns a call that multiplies as the feed-forward does, there and back, several times, and its FLOPs."""
    width, hidden = settings.transformer.width, settings.transformer.mlp_width
    tokens = settings.packing.rows * settings.packing.tokens
    generator = np.random.default_rng(0)
    x_LD, up_DM, down_MD = (
        jnp.asarray(generator.standard_normal(shape, np.float32) / shape[0] ** 0.5)
        for shape in ((tokens, width), (width, hidden), (hidden, width))
    )

    def there_and_back(x_LD: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x_LD @ up_DM @ down_MD, None

    run = jax.jit(lambda x_LD: jax.lax.scan(there_and_back, x_LD, length=_PRODUCTS)[0])
    return functools.partial(_done, lambda: run(x_LD)), _PRODUCTS * 4.0 * tokens * width * hidden


if __name__ == "__main__":
    use_huge_pages()
    run_command(main, _FLAGS)
