"""Wan transformers on disk: names, shapes and bytes in and out, what is refused, and the memory that reading takes."""

import ctypes
import dataclasses
import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.models.interop.wan import load_wan, save_wan, to_wan
from sora_jax.models.interop.wan_files import describe_wan
from sora_jax.models.interop.wan_names import LAYOUTS
from sora_jax.models.interop.wan_shape import WanShape, inexpressible
from sora_jax.models.interop.weights import WEIGHTS_FILE
from sora_jax.video import patches
from tests import small

TEXT = WanShape(
    patch=(1, 2, 2),
    width=24,
    mlp_width=64,
    heads=2,
    depth=2,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    frequency_dim=32,
    image_dim=None,
    image_positions=None,
    layout="diffusers",
)
FRAMES = dataclasses.replace(TEXT, in_channels=12, image_dim=10, image_positions=6)
STEM = WEIGHTS_FILE.removesuffix(".safetensors")


def linear(name, out_dim, in_dim):
    return {f"{name}.bias": (out_dim,), f"{name}.weight": (out_dim, in_dim)}


def public_shapes():
    """Returns the names and shapes of diffusers' tiny model, written out from its layers."""
    table = {
        "patch_embedding.weight": (24, 4, 1, 2, 2),
        "patch_embedding.bias": (24,),
        "scale_shift_table": (1, 2, 24),
        **linear("condition_embedder.text_embedder.linear_1", 24, 16),
        **linear("condition_embedder.text_embedder.linear_2", 24, 24),
        **linear("condition_embedder.time_embedder.linear_1", 24, 32),
        **linear("condition_embedder.time_embedder.linear_2", 24, 24),
        **linear("condition_embedder.time_proj", 144, 24),
        **linear("proj_out", 16, 24),
    }
    for block in ("blocks.0", "blocks.1"):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                table |= linear(f"{block}.{attention}.{part}", 24, 24)
            table |= {f"{block}.{attention}.norm_{side}.weight": (24,) for side in "qk"}
        table |= {f"{block}.norm2.weight": (24,), f"{block}.norm2.bias": (24,)}
        table |= linear(f"{block}.ffn.net.0.proj", 64, 24) | linear(f"{block}.ffn.net.2", 24, 64)
        table |= {f"{block}.scale_shift_table": (1, 6, 24)}
    return table


def params_of(shape, dtype=np.float32):
    """Returns random parameters on the host."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=size).astype(dtype) for name, size in shape.our_shapes().items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Returns the folder of a transformer as diffusers saves it."""
    folder = tmp_path_factory.mktemp("published")
    save_wan(folder, params_of(TEXT), TEXT)
    return folder


def test_names_and_shapes_are_the_public_ones():
    assert TEXT.shapes() == public_shapes()
    original = dataclasses.replace(FRAMES, layout="original").shapes()
    by_hand = {
        "head.modulation": (1, 2, 24),
        "head.head.weight": (16, 24),
        "time_projection.1.bias": (144,),
        "text_embedding.0.weight": (24, 16),
        "blocks.1.modulation": (1, 6, 24),
        "blocks.1.norm3.bias": (24,),
        "blocks.0.self_attn.o.weight": (24, 24),
        "blocks.0.cross_attn.k_img.bias": (24,),
        "blocks.0.cross_attn.norm_k_img.weight": (24,),
        "blocks.0.ffn.0.weight": (64, 24),
        "img_emb.proj.0.weight": (10,),
        "img_emb.proj.3.weight": (24, 10),
        "img_emb.emb_pos": (1, 6, 10),
        "patch_embedding.weight": (24, 12, 1, 2, 2),
    }
    assert by_hand.items() <= original.items()
    assert len(original) == len(FRAMES.shapes())
    assert not any(name.startswith("condition_embedder") for name in original)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [TEXT, FRAMES])
def test_there_and_back_and_there_again_is_exact(tmp_path, shape, layout):
    shape = dataclasses.replace(shape, layout=layout)
    params = {
        name: value if "modulation" in name else value.astype(jnp.bfloat16) for name, value in params_of(shape).items()
    }
    first = save_wan(tmp_path / "first", params, shape, shard_bytes=20_000)
    assert len(first) > 2
    assert describe_wan(tmp_path / "first") == shape
    loaded = load_wan(tmp_path / "first")
    assert {name: (value.shape, value.dtype) for name, value in loaded.items()} == {
        name: (value.shape, value.dtype) for name, value in params.items()
    }
    second = save_wan(tmp_path / "second", loaded, shape, shard_bytes=20_000)
    assert [file.read_bytes() for file in second] == [file.read_bytes() for file in first]
    index = json.loads((tmp_path / "second" / f"{WEIGHTS_FILE}.index.json").read_text())
    assert set(index["weight_map"]) == set(shape.shapes())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in params.values())


def test_weights_are_not_written_beside_the_config_of_another_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a config\.json already, of another model: give an empty folder"):
        save_wan(tmp_path, params_of(FRAMES), FRAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_one_file_is_what_the_library_of_the_format_writes(tmp_path):
    params = params_of(FRAMES)
    (file,) = save_wan(tmp_path / "model.safetensors", params, FRAMES, dtype=jnp.bfloat16)
    found, expected = load_file(file), to_wan(params, FRAMES)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.astype(jnp.bfloat16), err_msg=name)
    with file.open("rb") as stream:
        head = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    assert head["__metadata__"] == {"format": "pt"}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["config.json", "model.safetensors"]


def test_the_patch_embedding_is_the_convolution_of_noise_and_of_what_is_given(tmp_path):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(24, 12, 1, 2, 2)).astype(np.float32)
    latent_THWC = rng.normal(size=(1, 2, 2, 12)).astype(np.float32)
    expected = np.einsum("DCTHW,THWC->D", weight, latent_THWC)
    noise, given = (patches.patchify(part, FRAMES.patch) for part in (latent_THWC[..., :4], latent_THWC[..., 4:]))
    save_wan(tmp_path, params_of(FRAMES), FRAMES)
    save_file(load_file(tmp_path / WEIGHTS_FILE) | {"patch_embedding.weight": weight}, tmp_path / WEIGHTS_FILE)
    kernel = np.asarray(load_wan(tmp_path)["patch_embedding.kernel"])
    np.testing.assert_allclose((np.concatenate([noise, given], axis=-1) @ kernel)[0], expected, rtol=1e-4, atol=1e-5)


def test_each_parameter_comes_where_and_as_it_is_wanted(published):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2))
    params = params_of(TEXT)
    places = {
        "blocks.mlp_in.kernel": (jnp.bfloat16, PartitionSpec(None, "fsdp", "tensor")),
        "blocks.modulation": (jnp.float32, PartitionSpec("fsdp")),
        "patch_embedding.kernel": (jnp.float16, PartitionSpec(None, "fsdp")),
        "modulation": (jnp.float32, PartitionSpec()),
    }
    wanted = {
        name: jax.ShapeDtypeStruct(params[name].shape, dtype, sharding=NamedSharding(mesh, spec))
        for name, (dtype, spec) in places.items()
    }
    found = load_wan(published, wanted)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        assert (found[name].dtype, found[name].sharding) == (leaf.dtype, leaf.sharding)
        np.testing.assert_array_equal(found[name], params[name].astype(leaf.dtype), err_msg=name)


def test_what_does_not_fit_is_listed(published):
    wanted = {
        "blocks.attn1.norm_k.scale": jax.ShapeDtypeStruct((3, 24), np.float32),
        "place.bias": jax.ShapeDtypeStruct((24,), np.float32),
    }
    with pytest.raises(UserError, match=r"norm_k\.scale is \(2, 24\) instead of \(3, 24\), place\.bias is not there"):
        load_wan(published, wanted)
    params = params_of(TEXT)
    with pytest.raises(UserError, match=r"not known place\.bias"):
        to_wan({**params, "place.bias": np.zeros(24)}, TEXT)
    params.pop("proj_out.bias")
    with pytest.raises(UserError, match=r"missing proj_out\.bias"):
        to_wan(params, TEXT)


def write(folder, tensors, config=None):
    """Writes a transformer's folder of these tensors."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "module."])
def test_prefixes_are_stripped_and_heads_follow_from_the_width(tmp_path, prefix):
    wide = dataclasses.replace(TEXT, width=256, mlp_width=8, depth=1, layout="original")
    tensors = {f"{prefix}{name}": np.zeros(size, np.float16) for name, size in wide.shapes().items()}
    assert describe_wan(write(tmp_path, tensors) / WEIGHTS_FILE) == wide
    narrow = {f"{prefix}{name}": np.zeros(size, np.float16) for name, size in TEXT.shapes().items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"the width 24 is no multiple of 128.* put the config.json"):
        describe_wan(tmp_path / "narrow.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vace_blocks.0.proj_in.weight", "holds VACE, as vace_blocks.0.proj_in.weight shows"),
        ("motion_encoder.conv_in.weight", "holds Wan Animate, as"),
        ("face_adapter.0.to_q.weight", "holds Wan Animate, as"),
        ("casual_audio_encoder.weights", "holds Wan S2V, as"),
        ("control_adapter.conv.weight", "holds Wan Fun Control, as"),
        ("blocks.0.attn1.to_q.scale_weight", "is quantised, as blocks.0.attn1.to_q.scale_weight shows"),
        ("scaled_fp8", "is quantised, as scaled_fp8 shows"),
        ("stray", "missing none; not known stray"),
    ],
)
def test_other_models_and_quantised_ones_are_refused_by_name(tmp_path, published, name, said):
    tensors = load_file(published / WEIGHTS_FILE) | {name: np.zeros(1, np.float32)}
    with pytest.raises(UserError, match=said):
        describe_wan(write(tmp_path, tensors, json.loads((published / "config.json").read_text())))


def test_types_that_need_scales_are_refused(tmp_path, published):
    content = (published / WEIGHTS_FILE).read_bytes().replace(b'"dtype":"F32"', b'"dtype":"I32"', 1)
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"is quantised, as \S+ \(I32\) shows, .* give the bf16, fp16 or fp32"):
        describe_wan(tmp_path)
    with pytest.raises(UserError, match="GGUF"):
        describe_wan(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_layers": 3}, "num_layers 3, not 2"),
        ({"in_channels": 36}, "in_channels 36, not 4"),
        ({"image_dim": 1280}, "image_dim 1280, not None"),
        ({"eps": 1e-5}, "eps is 1e-05, and only 1e-06"),
        ({"_class_name": "CogVideoXTransformer3DModel"}, "_class_name is 'CogVideoX"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path, published, change, said):
    config = json.loads((published / "config.json").read_text()) | change
    with pytest.raises(UserError, match=said):
        describe_wan(write(tmp_path, load_file(published / WEIGHTS_FILE), config))


def test_channels_that_are_no_mask_and_latent_are_refused(tmp_path):
    control = dataclasses.replace(TEXT, in_channels=8)
    save_wan(tmp_path / "control", params_of(control), control)
    with pytest.raises(UserError, match=r"takes 8 channels and gives 4; only 4 of noise, or .* 12, are read"):
        describe_wan(tmp_path / "control")


def test_files_that_are_not_whole_are_refused_before_any_is_read(tmp_path, published):
    with pytest.raises(UserError, match="does not exist"):
        load_wan(tmp_path)
    params = params_of(TEXT)
    files = save_wan(tmp_path / "parts", params, TEXT, shard_bytes=30_000)
    files[-1].write_bytes(files[-1].read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_wan(tmp_path / "parts")
    files[-1].unlink()
    with pytest.raises(UserError, match=f"{files[-1].name} does not exist"):
        load_wan(tmp_path / "parts")
    (tmp_path / "parts" / f"{WEIGHTS_FILE}.index.json").unlink()
    with pytest.raises(UserError, match=r"without diffusion_pytorch_model\.safetensors\.index\.json: download that"):
        load_wan(tmp_path / "parts")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / f"{STEM}.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match="is a pickle, which can run any code"):
        load_wan(pickled)
    with pytest.raises(UserError, match="it lacks"):
        describe_wan(write(tmp_path / "other", {"weight": np.zeros(3, np.float32)}))


def test_a_folder_of_one_file_by_any_name_is_read(tmp_path, published):
    (tmp_path / "wan.safetensors").write_bytes((published / WEIGHTS_FILE).read_bytes())
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    assert describe_wan(tmp_path) == TEXT


def test_weights_that_are_there_are_not_written_over(tmp_path, published):
    with pytest.raises(UserError, match="holds weights already"):
        save_wan(published, params_of(TEXT), TEXT)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_wan(tmp_path / "file" / "folder", params_of(TEXT), TEXT)


def test_the_shape_is_that_of_our_config_and_says_what_wan_lacks():
    for shape in (TEXT, FRAMES):
        config = shape.config(time_rate=4.0, remat="full")
        assert WanShape.of(config, patch_width=shape.patch_width, text_dim=16) == shape
        assert shape.patch_width == 16
        assert inexpressible(config) == []
    said = "; ".join(inexpressible(small.TRANSFORMER))
    assert "no pooled_text" in said
    assert "rope_theta is 100" in said
    assert "text_pad_to is None" in said


def resident(key):
    """Returns bytes of this process's memory, "VmRSS" now or "VmHWM" at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a span of time")
def test_reading_takes_at_most_a_fifth_more_memory_than_the_result(tmp_path):
    """Stored in twice the bytes that are wanted, as public weights mostly are."""
    large = dataclasses.replace(TEXT, width=256, heads=2, mlp_width=1024, depth=32)
    save_wan(tmp_path, {name: np.zeros(size, np.float32) for name, size in large.our_shapes().items()}, large)
    wanted = {name: jax.ShapeDtypeStruct(size, jnp.bfloat16) for name, size in large.our_shapes().items()}
    target = sum(2 * leaf.size for leaf in wanted.values())
    load_wan(tmp_path, {name: wanted[name] for name in ("blocks.mlp_in.kernel", "modulation")})
    # What earlier tests freed is given back, or it would be taken again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    params = load_wan(tmp_path, wanted)
    jax.block_until_ready(params)
    taken = resident("VmHWM") - before
    assert target > 3e7
    assert 0.5 * target < taken < 1.2 * target, f"{taken / target:.2f} of the result"
