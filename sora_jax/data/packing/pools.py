"""What is drawn from: images and videos by their shares, and collections by theirs.

Letters: N samples, G collections.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.packing.rows import Pool


def clips_by_kind(grid_N3: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the numbers of "images" (clips of one latent frame) and of "videos"; grid_N3 are sizes of latents."""
    return {"images": np.flatnonzero(grid_N3[:, 0] == 1), "videos": np.flatnonzero(grid_N3[:, 0] > 1)}


def make_pools(
    grid_N3: np.ndarray,
    mix: Mapping[str, float] | None,
    *,
    collection_N: np.ndarray | None = None,
    weights_G: Sequence[float] | None = None,
) -> list[Pool]:
    """Returns the pools of samples to draw from.

    Without a `mix` every sample is drawn once in each epoch. A mix gives "images" (clips of one latent frame)
    and "videos" weights: their shares of the samples drawn; a kind left out is not drawn. `weights_G` (0 or more)
    shares each kind out among the collections that have clips of it; `collection_N` says in which one a sample is.
    Without them all clips of a kind are drawn alike.

    Raises `UserError` for an unknown kind, a weight that is not positive, or a kind without samples.
    """
    if mix is None:
        return [Pool(ids_N=np.arange(len(grid_N3)), share=1.0)]
    kinds = clips_by_kind(grid_N3)
    for kind, weight in mix.items():
        if kind not in kinds:
            raise UserError(f"the mix names {kind!r}: it can give weights to {' and '.join(kinds)}")
        if not 0 < weight < math.inf:
            raise UserError(f"the mix gives {kind} the weight {weight}: make it positive or leave {kind} out")
        if not len(kinds[kind]):
            raise UserError(
                f"the mix gives {kind} the weight {weight}, but 0 of {len(grid_N3)} prepared samples are "
                f"{kind}: prepare some, or leave {kind} out of the mix"
            )
    if not mix:
        raise UserError(f"the mix is empty: give weights to {' or '.join(kinds)}, or leave it out")
    pools = [Pool(ids_N=kinds[kind], share=float(mix[kind])) for kind in sorted(mix)]
    if weights_G is None or collection_N is None:
        return pools
    return [part for pool in pools for part in _share_out(pool, collection_N, weights_G)]


def _share_out(pool: Pool, collection_N: np.ndarray, weights_G: Sequence[float]) -> list[Pool]:
    """Returns a pool for each collection that has samples in `pool` and a weight."""
    members = {number: pool.ids_N[collection_N[pool.ids_N] == number] for number in np.flatnonzero(weights_G).tolist()}
    members = {number: ids_N for number, ids_N in members.items() if len(ids_N)}
    if not members:
        raise UserError(
            f"none of the {len(pool.ids_N)} samples of a kind in the mix is in a collection that has a weight: "
            "give a weight to another collection in mix.collections, or leave that kind out of the mix"
        )
    total = sum(weights_G[number] for number in members)
    return [Pool(ids_N=ids_N, share=pool.share * weights_G[number] / total) for number, ids_N in members.items()]
