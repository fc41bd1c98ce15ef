"""The batch of a failed step, as it is kept."""

import ml_dtypes
import numpy as np

from sora_jax.train import dump


def test_a_batch_comes_back_whatever_its_dtypes(tmp_path):
    states = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16)
    batch = {"text_BKE": states, "segment_BL": np.arange(6, dtype=np.int32), "clip_BTHWC": np.ones((1, 2), np.uint8)}
    dump.write_batch(tmp_path, 3, batch)
    found = dump.read_batch(tmp_path, 3)
    assert found.keys() == batch.keys()
    for name, value in batch.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32) if name == "text_BKE" else value)
    assert [found[name].dtype for name in ("segment_BL", "clip_BTHWC")] == [np.int32, np.uint8]
