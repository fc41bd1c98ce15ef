"""Our networks beside those of transformers, on random pieces in a padded batch."""

import jax
import numpy as np

from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.text.network import load

TOLERANCE = 1e-5


def our_states(weights, token_BK, lengths, depth=None):
    """Returns the states (B, K, E) in float32; with `depth` those after so many blocks, and what follows these."""
    structure, shapes, _ = abstract_model(weights.build)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load(weights, shapes, dtype=np.dtype(np.float32), place=place)
    params = {name: value[:depth] if name.startswith("blocks.") else value for name, value in params.items()}
    return np.asarray(merge_model(structure, params)(token_BK, np.asarray(lengths)))


def padded(lengths, vocabulary):
    """Returns int32 token_BK of random pieces, 0 beyond the lengths, and the mask of what counts."""
    rng = np.random.default_rng(0)
    mask_BK = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    return np.where(mask_BK, rng.integers(0, vocabulary, mask_BK.shape), 0).astype(np.int32), mask_BK


def their_states(model, token_BK, mask_BK, torch):
    """Returns what a model of transformers gives, of which `last_hidden_state` are the states."""
    with torch.no_grad():
        return model(
            torch.tensor(token_BK, dtype=torch.long),
            attention_mask=torch.tensor(mask_BK, dtype=torch.long),
            output_hidden_states=True,
        )


def assert_agree(model, weights, *, lengths, torch):
    """Asserts that the states of all true positions are the same."""
    token_BK, mask_BK = padded(lengths, weights.vocabulary)
    theirs = their_states(model, token_BK, mask_BK, torch).last_hidden_state.numpy()
    ours = our_states(weights, token_BK, lengths)
    assert np.std(theirs[mask_BK]) > 0.1
    np.testing.assert_allclose(ours[mask_BK], theirs[mask_BK], atol=TOLERANCE, rtol=TOLERANCE)
