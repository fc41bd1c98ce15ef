"""Frozen parameters beside checkpoints: their fingerprint, and how they are found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.frozen import FROZEN, find_params, load_frozen, load_params, params_fingerprint, save_frozen
from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=1, fsdp=4, sequence=1, tensor=1), jax.devices()[:4])
POLICY = CheckpointConfig(
    every_steps=1, every_minutes=None, keep=2, keep_best=0, keep_every_steps=None, keep_every_hours=None
)
PLACE = SingleDeviceSharding(jax.devices()[0])


def params():
    values = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    return {"text.kernel": jnp.asarray(values, jnp.bfloat16), "text.bias": jnp.asarray(values[0])}


def shapes(dtype=None):
    return {n: jax.ShapeDtypeStruct(v.shape, dtype or v.dtype, sharding=PLACE) for n, v in params().items()}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder of checkpoints of a stage that trains `head` and has frozen the rest."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "videos"
    note = save_frozen(folder, params(), {})
    trained = {"head": jnp.full(3, 2.0)}
    with Checkpointer(folder, POLICY) as saver:
        saver.save(5, {"params": trained, "ema": {"width_0.1": {"head": jnp.ones(3)}}}, {FROZEN: note}, {}, settle=True)
    return folder


def test_the_fingerprint_is_of_values_names_and_dtypes_on_any_mesh():
    whole = params()
    place = NamedSharding(MESH, PartitionSpec("fsdp"))
    split = {"text.bias": whole["text.bias"], "text.kernel": jax.device_put(whole["text.kernel"], place)}
    assert params_fingerprint(split) == params_fingerprint(whole)
    swapped = np.array(whole["text.bias"])
    swapped[[0, 1]] = swapped[[1, 0]]
    bit = np.array(whole["text.bias"])
    bit[3] = np.nextafter(bit[3], np.float32(9))
    for changed in (
        {"text.bias": jnp.asarray(swapped)},
        {"text.bias": jnp.asarray(bit)},
        {"text.kernel": whole["text.kernel"].astype(jnp.float32)},
        {"other": whole["text.bias"]},
    ):
        assert params_fingerprint({**whole, **changed}) != params_fingerprint(whole)


def test_a_checkpoint_has_no_bytes_of_them_and_they_are_found_beside_it(stage):
    trained, frozen = find_params(epath.Path(stage) / "5", "ema/width_0.1")
    assert (set(trained), set(frozen)) == ({"head"}, set(params()))
    wanted = {"head": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=PLACE), **shapes(jnp.float32)}
    for part, value in (("params", 2.0), ("ema/width_0.1", 1.0)):
        found, step = load_params(stage, part, wanted)
        assert (step, list(found)) == (5, list(wanted))
        np.testing.assert_array_equal(found["head"], np.full(3, value))
        for name, kept in params().items():
            np.testing.assert_array_equal(found[name], kept.astype(jnp.float32))
    alone, _ = load_params(stage, "params", shapes(jnp.float32))
    assert set(alone) == set(params()), "also where nothing of the checkpoint itself is asked for"


def test_other_values_are_refused(stage, tmp_path):
    good = params_fingerprint(params())
    loaded = load_frozen(stage, shapes(), expected=good)
    jax.tree.map(np.testing.assert_array_equal, loaded, params())
    with pytest.raises(UserError, match=f"have the fingerprint {good}, and the checkpoints beside them .* with 0123"):
        load_frozen(stage, shapes(), expected="0123")
    other = {n: v + 1 for n, v in params().items()}
    copy = tmp_path / "videos"
    save_frozen(copy, other, {})
    with Checkpointer(copy, POLICY) as saver:
        saver.save(5, {"params": {"head": jnp.ones(3)}}, {FROZEN: good}, {}, settle=True)
    with pytest.raises(UserError, match="put back the folder that belongs to them"):
        load_params(copy, "params", shapes(jnp.float32))
    next((copy / FROZEN / "0" / "state" / "d").iterdir()).write_bytes(b"damaged")
    with pytest.raises(StorageError, match="can be trusted"):
        load_params(copy, "params", shapes(jnp.float32))


def test_what_an_earlier_start_froze_is_replaced(tmp_path):
    first = save_frozen(tmp_path, {"a": jnp.zeros(3)}, {})
    second = save_frozen(tmp_path, {"a": jnp.ones(3)}, {})
    assert first != second
    place = {"a": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=PLACE)}
    np.testing.assert_array_equal(load_frozen(tmp_path, place, expected=second)["a"], np.ones(3))


class Files:
    """A public model on disk, as a `Source` of what `params` has of a text."""

    place, dtype = "models/public", jnp.dtype(jnp.bfloat16)

    def __init__(self, values):
        self.values = values

    def has(self, name):
        return name.startswith("text.")

    def load(self, wanted):
        return {name: jax.device_put(self.values[name].astype(one.dtype), one.sharding) for name, one in wanted.items()}


def test_what_a_public_model_has_is_not_written_once_more(tmp_path):
    kept = {name: value.astype(jnp.bfloat16) for name, value in params().items()}
    public, stage = Files(kept), tmp_path / "videos"
    note = save_frozen(stage, kept, {}, source=public)
    assert note == fingerprint(kept)
    assert not (stage / NAME).exists()
    jax.tree.map(
        np.testing.assert_array_equal, load_frozen(stage, shapes(jnp.bfloat16), expected=note, source=public), kept
    )
    with Checkpointer(stage, POLICY) as saver:
        saver.save(5, {"params": {"head": jnp.full(3, 2.0)}}, {NAME: note}, {}, settle=True)
    wanted = {"head": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=PLACE), **shapes(jnp.float32)}
    found, _ = load_params(stage, "params", wanted, source=public)
    jax.tree.map(np.testing.assert_array_equal, found, {"head": np.full(3, 2.0, np.float32), **kept})
    other = Files({name: value + 1 for name, value in kept.items()})
    for load in (
        lambda: load_frozen(stage, shapes(jnp.bfloat16), expected=note, source=other),
        lambda: load_params(stage, "params", wanted, source=other),
    ):
        with pytest.raises(UserError, match=f"weights in models/public have .* were trained on {note}: give the model"):
            load()


def test_only_what_no_public_model_has_is_written(tmp_path):
    whole = {**params(), "mine": jnp.ones(2)}
    public = Files(whole)
    note = save_frozen(tmp_path, whole, {}, source=public)
    wanted = {**shapes(), "mine": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=PLACE)}
    assert set(load_frozen(tmp_path, {"mine": wanted["mine"]}, expected=fingerprint({"mine": jnp.ones(2)}))) == {"mine"}
    jax.tree.map(np.testing.assert_array_equal, load_frozen(tmp_path, wanted, expected=note, source=public), whole)
