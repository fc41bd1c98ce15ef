"""Which noise levels training sees, and which ones sampling passes through.

More tokens show more of the picture through the same noise, so a larger clip needs more noise for the same
difficulty: both distributions are shifted by the segment's own token count (arXiv 2403.03206, section 5.3.2), that
of the tokens which are there: one that was dropped shows nothing.

Letters: B rows, S segments of a row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The distribution of sigma; raises UserError on impossible values.

    mean, std: of logit(sigma) before the shift (logit-normal, arXiv 2403.03206, section 3.1).
    shift_base_tokens: the token count that is not shifted; None shifts nothing.
    shift_power: alpha = (tokens / base) ** power; the paper's square root.
    shift_limits: smallest and largest alpha.
    uniform_share: share of the segments that draw a plain, unshifted uniform level, so that no level is rare.
    """

    mean: float
    std: float
    shift_base_tokens: float | None
    shift_power: float
    shift_limits: tuple[float, float]
    uniform_share: float

    def __post_init__(self):
        if self.std <= 0:
            raise UserError(f"noise std {self.std} is not positive; 1.0 is usual")
        if self.shift_base_tokens is not None and self.shift_base_tokens <= 0:
            raise UserError(
                f"noise shift_base_tokens {self.shift_base_tokens} is not positive; None turns the shift off"
            )
        low, high = self.shift_limits
        if not 0 < low <= high:
            raise UserError(f"noise shift_limits ({low}, {high}) must be positive and in order")
        if not 0 <= self.uniform_share <= 1:
            raise UserError(f"noise uniform_share {self.uniform_share} is outside [0, 1]")


def draw(key: jax.Array, tokens_BS: jax.Array, config: NoiseConfig) -> jax.Array:
    """Returns sigma_BS float32 in (0, 1]: one level per segment; absent segments (0 tokens) get 1.

    Stratified: the levels of the n present segments fall one into each n-th of the distribution, whatever row
    they are in, so that batches differ little in difficulty. Each level alone follows the exact distribution.
    """
    present_BS = tokens_BS > 0
    level_key, tail_key, choice_key = jax.random.split(key, 3)
    # One float32 step away from 0 and 1, where the quantile is infinite.
    u_BS = jnp.clip(_stratified(level_key, present_BS), 1e-7, 1 - 1e-7)
    logit_BS = config.mean + config.std * jax.scipy.special.ndtri(u_BS)
    sigma_BS = shift(jax.nn.sigmoid(logit_BS), alpha(tokens_BS, config))
    in_tail_BS = _stratified(choice_key, present_BS) < config.uniform_share
    sigma_BS = jnp.where(in_tail_BS, 1 - _stratified(tail_key, present_BS), sigma_BS)
    return jnp.where(present_BS, jnp.clip(sigma_BS, jnp.finfo(jnp.float32).tiny, 1.0), 1.0)


def schedule(
    num_steps: int,
    num_tokens: jax.Array | int,
    config: NoiseConfig,
    *,
    start: jax.Array | float = 1.0,
    through: tuple[float, ...] = (),
) -> jax.Array:
    """Returns sigma float32 (num_steps + 1, *num_tokens.shape), falling to exactly 0, by default from exactly 1.

    Evenly spaced, then shifted like the training levels. `num_tokens` is a count or tokens_BS. `start`, of that shape
    or a number in [0, 1], is where the even levels begin: editing begins part of the way (SDEdit, arXiv 2108.01073).
    Levels `through` are met exactly: the nearest one of the schedule moves there, unless that is its start or its end.
    Raises UserError on less than one step.
    """
    if num_steps < 1:
        raise UserError(f"{num_steps} sampling steps: at least 1 is needed")
    factor = alpha(num_tokens, config)
    even = jnp.linspace(1.0, 0.0, num_steps + 1, dtype=jnp.float32)
    sigma = shift(even.reshape(-1, *[1] * factor.ndim) * start, factor)
    number = jnp.arange(num_steps + 1).reshape(-1, *[1] * factor.ndim)
    for level in through:
        nearest = jnp.argmin(jnp.abs(sigma - level), axis=0)
        met = (number == nearest) & (number > 0) & (number < num_steps) & (level < sigma[:1])
        sigma = jnp.where(met, level, sigma)
    return sigma


def alpha(tokens: jax.Array | int, config: NoiseConfig) -> jax.Array:
    """Returns the shift factor of each token count, float32, same shape."""
    counts = jnp.asarray(tokens, jnp.float32)
    if config.shift_base_tokens is None:
        return jnp.ones_like(counts)
    low, high = config.shift_limits
    return jnp.clip((counts / config.shift_base_tokens) ** config.shift_power, low, high)


def shift(sigma: jax.Array, alpha: jax.Array) -> jax.Array:
    """Returns alpha sigma / (1 + (alpha - 1) sigma): multiplies the odds sigma / (1 - sigma) by alpha.

    Written so that 0 and 1 are kept exactly.
    """
    return alpha * sigma / (alpha * sigma + (1 - sigma))


def _stratified(key: jax.Array, present_BS: jax.Array) -> jax.Array:
    """Returns u_BS in [0, 1]: over the present entries, one in each of n equal cells, in random order."""
    order_key, jitter_key = jax.random.split(key)
    score_BS = jax.random.uniform(order_key, present_BS.shape)
    # Absent entries score last, so the present ones hold the ranks 0 ... n - 1.
    score_M = jnp.where(present_BS, score_BS, 2.0).reshape(-1)
    rank_BS = jnp.argsort(jnp.argsort(score_M)).reshape(present_BS.shape)
    jitter_BS = jax.random.uniform(jitter_key, present_BS.shape)
    return (rank_BS + jitter_BS) / jnp.maximum(jnp.sum(present_BS), 1)
