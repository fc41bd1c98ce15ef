"""The train step of this repository as a contestant: transformer, loss, AdamW, average of weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.benchmarks.clip_mix import ClipLayout
from sora_jax.core import rng
from sora_jax.core.mean import Mean
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import batch_sharding
from sora_jax.core.tree import Params, abstract_model, init_params, merge_model
from sora_jax.models.transformer import Transformer
from sora_jax.models.transformer_config import TransformerConfig
from sora_jax.train.guard import ONLY_FINITE
from sora_jax.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from sora_jax.train.reporter import HostBatch
from sora_jax.train.state import EmaConfig, StateMaker
from sora_jax.train.step import StepConfig, make_step

OPTIMIZER = OptimizerConfig(name="adamw", b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0)
LEARNING_RATE = 1e-4
_EMA = EmaConfig(widths=(0.05,), snapshots=None)


def build_transformer(config: TransformerConfig, layout: ClipLayout, key: jax.Array) -> Transformer:
    """Returns the transformer that all contestants train."""
    return Transformer(config, patch_width=layout.patch_width, text_dim=layout.text_dim, rngs=Rngs(key))


def random_params(config: TransformerConfig, layout: ClipLayout) -> Params:
    """Returns float32 parameters on the device, none of them zero: a shut gate would hide what is behind it."""
    fresh = jax.jit(functools.partial(init_params, functools.partial(build_transformer, config, layout)))(
        rng.key(0, "weights")
    )
    return {
        name: value + 0.02 * jax.random.normal(rng.key(0, name), value.shape, value.dtype)
        for name, value in fresh.items()
    }


def predict(model: Transformer, batch: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    """Returns prediction_BLP, float32."""
    prediction = model(
        batch["tokens_BLP"].astype(dtype),
        levels_BG=batch["levels_BG"],
        level_BL=batch["level_BL"],
        position_BL3=batch["position_BL3"],
        segment_BL=batch["segment_BL"],
        extent_BL3=jnp.ones_like(batch["position_BL3"]),
        text_BKE=batch["text_BKE"].astype(dtype),
        text_segment_BK=batch["text_segment_BK"],
    )
    return prediction.tokens_BLP


def predict_once(config: TransformerConfig, layout: ClipLayout, params: Params, batch: HostBatch) -> np.ndarray:
    """Returns prediction_BLP in float32 arithmetic, on the first device."""
    structure, _, _ = abstract_model(functools.partial(build_transformer, config, layout))

    def run(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return predict(merge_model(structure, params), batch, jnp.dtype(jnp.float32))

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(run)(params, {name: jnp.asarray(value) for name, value in batch.items()}))


class OurStep:
    """Trains on one device. One state serves all arrangements: of a large model there is no room for several."""

    def __init__(self, config: TransformerConfig, layout: ClipLayout, params: Params, *, dtype: jnp.dtype):
        def objective(model: Transformer, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
            error_BL = jnp.mean(jnp.square(predict(model, batch, dtype) - batch["target_BLP"]), axis=-1)
            return Mean.of(error_BL, batch["segment_BL"] > 0), {}

        self._mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.devices()[:1])
        make = functools.partial(build_transformer, config, layout)
        optimizer = functools.partial(make_optimizer, OPTIMIZER)
        self._maker = StateMaker(build=make, make_optimizer=optimizer, ema=_EMA, mesh=self._mesh)
        self._params = params
        structure, _, axes = abstract_model(make)
        schedule = ScheduleConfig(learning_rate=LEARNING_RATE, warmup_steps=0, decay_share=0.0, final_share=1.0)
        settings = StepConfig(
            name="benchmark", seed=0, steps=1_000_000, accumulate=1, schedule=schedule, ema=_EMA, guard=ONLY_FINITE
        )
        self._step, self._scalars = make_step(objective, structure, optimizer(axes), settings), settings.scalars
        self.reset()

    def reset(self) -> None:
        """Takes the first weights again, and forgets all moments."""
        with jax.set_mesh(self._mesh):
            fresh = self._maker.fresh(rng.key(0, "benchmark"))
        # A copy: the step takes the state's memory for its own.
        self._state = dataclasses.replace(fresh, params=jax.tree.map(jnp.copy, self._params))

    def put(self, batch: HostBatch) -> dict[str, jax.Array]:
        """Returns a batch on the device."""
        return jax.device_put(batch, batch_sharding(self._mesh))

    def train(self, batches: list[dict[str, jax.Array]]) -> list[float]:
        """Returns the losses of a step with each batch, when all are done."""
        losses = []
        with jax.set_mesh(self._mesh):
            for batch in batches:
                self._state, metrics = self._step(self._state, batch, self._scalars)
                losses.append(metrics["loss"])
            return [float(loss) for loss in jax.block_until_ready(losses)]
