"""LoRA files: each form gives the same adapter, all keys belong; with torch (marker parity), what diffusers reads."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, merge_model, split_model
from sora_jax.models.interop.lora import described_adapter, read_lora
from sora_jax.models.interop.lora_writing import save_lora
from sora_jax.models.interop.variants import VARIANTS
from sora_jax.models.interop.wan_shape import WanShape
from sora_jax.models.transformer import Transformer
from sora_jax.nn.linear import Linear
from sora_jax.nn.lora import LoraConfig, adapted, adapters_of, add_product

SHAPE = WanShape(
    patch=(1, 2, 2),
    width=24,
    mlp_width=32,
    heads=2,
    depth=2,
    in_channels=16,
    out_channels=16,
    text_dim=32,
    frequency_dim=256,
    image_dim=None,
    image_positions=None,
    layout="diffusers",
)
RANK, SCALE = 3, 0.5
# What other programs match the keys of a file with.
COMFYUI = r"diffusion_model\.blocks\.\d+\.((self|cross)_attn\.(q|k|v|o)|ffn\.(0|2))\.lora_(A|B)\.weight"
LIGHTX2V = r"(diffusion_model\.|transformer\.)blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.lora_[AB]\.weight"
MUSUBI = r"lora_unet_blocks_\d+_((self|cross)_attn_[qkvo]|ffn_[02])_lora_[AB]_weight"


@functools.cache
def shapes_of(shape=SHAPE):
    return shape.our_shapes()


def factors(shape=SHAPE, rank=RANK):
    """Returns random adapters of all maps of the blocks."""
    generator = np.random.default_rng(0)
    names = {name: size for name, size in shapes_of(shape).items() if re.fullmatch(r"blocks\..*\.kernel", name)}
    return {
        name: (
            generator.normal(size=(layers, ins, rank)).astype(np.float32),
            generator.normal(size=(layers, rank, outs)).astype(np.float32),
        )
        for name, (layers, ins, outs) in names.items()
    }


def save(path, **options):
    return save_lora(path, factors(), scale=SCALE, facts={"base": "tiny"}, dtype="float32", **options)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Returns the file that we write."""
    return save(tmp_path_factory.mktemp("lora") / "mine.safetensors")


def same_products(file, times=SCALE):
    expected = factors()
    assert file.factors.keys() == expected.keys()
    for name, (first, last) in file.factors.items():
        wanted = times * (expected[name][0] @ expected[name][1])
        np.testing.assert_allclose(first @ last, wanted, rtol=1e-5, atol=1e-5)


def test_our_file_reads_back_and_says_what_it_is(ours):
    file = read_lora(ours, shapes_of())
    same_products(file)
    assert file.matched == len(load_file(ours)) == 2 * 10 * SHAPE.depth
    assert file.metadata == {"rank": "3", "alpha": "3", "base": "tiny", "format": "pt"}
    assert "40 keys, all matched" in described_adapter(file)


def test_every_key_is_one_that_other_programs_read(ours):
    for key in load_file(ours):
        assert re.fullmatch(COMFYUI, key)
        assert re.fullmatch(LIGHTX2V, key)
        bare = key.removeprefix("diffusion_model.").replace(".", "_")
        assert re.fullmatch(MUSUBI, f"lora_unet_{bare}")


def forms(ours, folder):
    """Yields files of the five forms, each with the scale where that form has it."""
    original, diffusers = load_file(ours), load_file(save(folder / "names.safetensors", layout="diffusers"))
    unscaled = {key: value / SCALE if "lora_B" in key else value for key, value in original.items()}
    head = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": RANK * SCALE, "transformer.r": RANK})}
    bare = {key.removeprefix("transformer."): value for key, value in diffusers.items()}
    half = {key: value / SCALE if "lora_B" in key else value for key, value in diffusers.items()}
    yield "diffusers", half, head
    old = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): one for key, one in unscaled.items()}
    alphas = {
        key.replace("lora_down.weight", "alpha"): np.array(RANK * SCALE, np.float32) for key in old if "down" in key
    }
    yield "original", old | alphas, {}

    def kohya(key):
        module, dot, end = re.split(r"\.(?=lora_|alpha)", key)[0], ".", re.split(r"\.(?=lora_|alpha)", key)[1]
        return f"lora_unet_{module.removeprefix('diffusion_model.').replace('.', '_')}{dot}{end}"

    yield "kohya", {kohya(key): value for key, value in (old | alphas).items()}, {}
    yield "peft", {f"base_model.model.{key}": value for key, value in bare.items()}, {}
    named = {
        key.removeprefix("diffusion_model.").replace(".weight", ".default.weight"): v for key, v in original.items()
    }
    yield "diffsynth", named, {}


def test_all_forms_are_the_same_adapter(ours, tmp_path):
    seen = []
    for name, tensors, metadata in forms(ours, tmp_path):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata=metadata)
        file = read_lora(tmp_path / f"{name}.safetensors", shapes_of())
        same_products(file)
        assert file.matched == len(tensors)
        seen.append(name)
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "mine.safetensors"])
def test_the_alpha_of_peft_lies_beside_its_file(ours, tmp_path, name, caplog):
    tensors = {key.replace("diffusion_model.", "base_model.model."): value for key, value in load_file(ours).items()}
    save_file(tensors, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2 * RANK, "r": RANK}))
    file = read_lora(tmp_path if name.startswith("adapter") else tmp_path / name, shapes_of())
    same_products(file, times=2 * SCALE)
    assert file.matched == len(tensors)
    assert not caplog.records
    (tmp_path / "adapter_config.json").unlink()
    same_products(read_lora(tmp_path / name, shapes_of()))
    (record,) = caplog.records
    assert "no adapter_config.json with its alpha, which is taken as the rank" in record.getMessage()


def test_the_config_of_another_adapter_in_the_same_folder_is_refused(ours, tmp_path):
    tensors = {key.replace("diffusion_model.", "base_model.model."): value for key, value in load_file(ours).items()}
    save_file(tensors, tmp_path / "second.safetensors")
    config = {"lora_alpha": 2 * RANK, "r": RANK + 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    said = rf"of rank {RANK}, and the adapter_config\.json beside it says {RANK + 1}, .* a folder of its own"
    with pytest.raises(UserError, match=said):
        read_lora(tmp_path / "second.safetensors", shapes_of())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {r".*\..*": RANK}}))
    same_products(read_lora(tmp_path / "second.safetensors", shapes_of()), times=2 * SCALE)


def test_what_lies_beside_a_file_in_other_names_is_not_its_own(ours, tmp_path, caplog):
    save_file(load_file(ours), tmp_path / "mine.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2 * RANK, "r": RANK}))
    same_products(read_lora(tmp_path / "mine.safetensors", shapes_of()))
    assert not caplog.records


def test_the_bias_of_an_adapter_has_its_scale_and_a_difference_beside_it_none(tmp_path):
    generator, module = np.random.default_rng(2), "base_model.model.blocks.1.self_attn.q"
    down, up = generator.normal(size=(3, 24)), generator.normal(size=(24, 3))
    up_bias, difference = generator.normal(size=(2, 24)).astype(np.float32)
    tensors = {
        f"{module}.lora_A.weight": down.astype(np.float32),
        f"{module}.lora_B.weight": up.astype(np.float32),
        f"{module}.lora_B.bias": up_bias,
        f"{module}.diff_b": difference,
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 3, "lora_bias": True}))
    file = read_lora(tmp_path, shapes_of())
    found = file.differences["blocks.attn1.to_q.bias"]
    np.testing.assert_allclose(found, [np.zeros(24), 2 * up_bias + difference], rtol=1e-5)
    save_file({f"{module}.lora_B.bias": up_bias}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="has bias of up alone, and a LoRA is two factors"):
        read_lora(tmp_path, shapes_of())


def test_blocks_of_other_ranks_and_differences_are_exact(tmp_path):
    generator = np.random.default_rng(1)

    def draw(*size):
        return generator.normal(size=size).astype(np.float32)

    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": draw(2, 24),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": draw(24, 2),
        "diffusion_model.blocks.1.self_attn.q.lora_A.weight": draw(5, 24),
        "diffusion_model.blocks.1.self_attn.q.lora_B.weight": draw(24, 5),
        "diffusion_model.blocks.1.self_attn.q.diff_b": draw(24),
        "diffusion_model.blocks.0.norm3.diff": draw(24),
        "diffusion_model.text_embedding.0.diff": draw(24, 32),
    }
    save_file(tensors, tmp_path / "mixed_low_noise.safetensors")
    file = read_lora(tmp_path / "mixed_low_noise.safetensors", shapes_of())
    first, last = file.factors["blocks.attn1.to_q.kernel"]
    for block in (0, 1):
        down, up = (tensors[f"diffusion_model.blocks.{block}.self_attn.q.lora_{x}.weight"] for x in "AB")
        np.testing.assert_allclose(first[block] @ last[block], (up @ down).T, rtol=1e-5, atol=1e-5)
    bias, norm = file.differences["blocks.attn1.to_q.bias"], file.differences["blocks.norm2.scale"]
    np.testing.assert_array_equal(bias, [np.zeros(24), tensors["diffusion_model.blocks.1.self_attn.q.diff_b"]])
    np.testing.assert_array_equal(norm, [tensors["diffusion_model.blocks.0.norm3.diff"], np.zeros(24)])
    text = file.differences["condition_embedder.text_in.kernel"]
    np.testing.assert_array_equal(text, tensors["diffusion_model.text_embedding.0.diff"].T)
    assert file.expert == "low"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"diffusion_model.blocks.7.self_attn.q.lora_A.weight": (3, 24)},
            "40 of 41 keys are of this model, 1 of nothing",
        ),
        ({"diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight": (3, 24)}, "that I2V and FLF2V of Wan 2.1 have"),
        ({"diffusion_model.blocks.0.self_attn.q.dora_scale": (24,)}, "is no plain LoRA"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (3, 48)}, "24 to 24 wide in this model"),
        ({"diffusion_model.text_embedding.0.lora_A.weight": (3, 32)}, "a LoRA is two factors"),
    ],
)
def test_what_does_not_belong_is_refused(ours, tmp_path, change, said):
    tensors = load_file(ours) | {key: np.zeros(size, np.float32) for key, size in change.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=re.escape(said)):
        read_lora(tmp_path / "a.safetensors", shapes_of())


def test_a_file_without_an_adapter_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds nothing"):
        read_lora(tmp_path / "a.safetensors", shapes_of())


def test_a_map_is_changed_by_one_pair_of_factors_alone(ours, tmp_path):
    save_file(
        load_file(ours) | load_file(save(tmp_path / "b.safetensors", layout="diffusers")), tmp_path / "a.safetensors"
    )
    with pytest.raises(UserError, match="twice, by names of two forms"):
        read_lora(tmp_path / "a.safetensors", shapes_of())


@pytest.mark.parametrize(
    ("alpha", "said"),
    [([1.0, 2.0], r"the alpha of .* is \(2,\)"), (np.nan, "numbers that are not finite"), (np.inf, "not finite")],
)
def test_an_alpha_is_one_finite_number(ours, tmp_path, alpha, said):
    more = {"diffusion_model.blocks.0.self_attn.q.alpha": np.array(alpha, np.float32)}
    save_file(load_file(ours) | more, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=said):
        read_lora(tmp_path / "a.safetensors", shapes_of())


@pytest.mark.parametrize(
    "config",
    [{"lora_alpha": "much"}, {"alpha_pattern": {"(": 2}}, {"alpha_pattern": ["a"]}, {"r": [3]}, [], "[" * 100_000],
)
def test_a_damaged_config_of_peft_is_told(ours, tmp_path, config):
    tensors = {key.replace("diffusion_model.", "base_model.model."): value for key, value in load_file(ours).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"onfig.* is damaged"):
        read_lora(tmp_path / "a.safetensors", shapes_of())


def test_an_expert_that_is_none_is_no_reason_to_leave_an_adapter_out(ours, tmp_path):
    save_file(load_file(ours), tmp_path / "a.safetensors", metadata={"expert": "both"})
    assert read_lora(tmp_path / "a.safetensors", shapes_of()).expert is None


def test_image_keys_belong_where_the_model_sees_images():
    variant = VARIANTS["i2v_14b_480p"]
    assert variant.image_dim is not None
    image = dataclasses.replace(SHAPE, image_dim=8)
    assert "blocks.attn2.add_k_proj.kernel" in factors(image)


@pytest.mark.parametrize("form", ["call", "to_heads", "from_heads"])
def test_an_adapter_is_a_change_of_the_kernel(form):
    linear = Linear(8, 8, axes=("embed", "heads"), rngs=Rngs(0))
    linear.add_adapter(2, 1.5, rngs=Rngs(1))
    structure, params, axes = split_model(linear)
    assert np.all(params["lora_b"] == 0)
    assert np.abs(params["lora_a"]).max() <= 8**-0.5
    assert (axes["lora_a"], axes["lora_b"]) == (("embed", None), (None, "heads"))
    params["lora_b"] = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 8)), jnp.float32)
    kernel = add_product(params["kernel"], params["lora_a"], params["lora_b"], 1.5)
    call = {
        "call": lambda m: m(x),
        "to_heads": lambda m: m.to_heads(x, 2),
        "from_heads": lambda m: m.from_heads(x.reshape(2, 3, 2, 4)),
    }[form]
    still = {**params, "kernel": kernel, "lora_b": jnp.zeros((2, 8))}
    np.testing.assert_allclose(
        call(merge_model(structure, params)), call(merge_model(structure, still)), atol=1e-5, rtol=1e-5
    )


def test_targets_have_adapters_and_the_rest_is_as_without():
    def build(lora):
        config = dataclasses.replace(SHAPE.config(time_rate=1.0, remat="none"), lora=lora)
        return lambda key: Transformer(config, patch_width=SHAPE.patch_width, text_dim=32, rngs=Rngs(key))

    lora = LoraConfig(rank=2, alpha=None, targets=r"attn1\.to_[qk]")
    _, plain, _ = abstract_model(build(None))
    _, both, axes = abstract_model(build(lora))
    assert adapters_of(both) == ["blocks.attn1.to_k", "blocks.attn1.to_q"]
    assert both.keys() - plain.keys() == {f"blocks.attn1.to_{x}.lora_{y}" for x in "kq" for y in "ab"}
    assert axes["blocks.attn1.to_q.lora_a"] == ("layers", "embed", None)
    with pytest.raises(UserError, match="matches none of the maps of a block, which are"):
        abstract_model(build(dataclasses.replace(lora, targets="to_q")))
    module = Linear(2, 2, axes=(None, None), rngs=Rngs(0))
    assert adapted(module, LoraConfig(rank=None, alpha=None, targets=None), rngs=Rngs(0)) is module


def torch_model():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def torch_output(model):
    import torch

    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn((1, 16, 2, 4, 4), generator=generator), torch.randn((1, 5, 32), generator=generator)
    with torch.no_grad():
        return model(hidden_states=x, timestep=torch.tensor([300]), encoder_hidden_states=text, return_dict=False)[0]


def kernels(model):
    """Returns the weights of the attention and feed-forward of its blocks by our names, stacked."""
    result = {}
    theirs = {"to_out": "to_out.0", "mlp_in": "ffn.net.0.proj", "mlp_out": "ffn.net.2"}
    for name in factors():
        part = name.removeprefix("blocks.").removesuffix(".kernel")
        for ours, other in theirs.items():
            part = part.replace(ours, other)
        found = dict(model.named_parameters())
        result[name] = np.stack([found[f"blocks.{i}.{part}.weight"].detach().numpy().T.copy() for i in range(2)])
    return result


@pytest.mark.parity
def test_diffusers_loads_all_of_our_file(ours):
    model, before = torch_model(), kernels(torch_model())
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=model,
    )
    plain = torch_output(model)
    pipeline.load_lora_weights(str(ours))
    loaded = [name for name, _ in model.named_parameters() if ".lora_" in name]
    with safe_open(ours, framework="numpy") as file:
        assert len(loaded) == len(file.keys())
    unfused = torch_output(model)
    assert (unfused - plain).abs().max() > 0.01
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    np.testing.assert_allclose(torch_output(model), unfused, atol=1e-5, rtol=1e-5)
    after, file = kernels(model), read_lora(ours, shapes_of())
    for name, (first, last) in file.factors.items():
        ours_after = add_product(jnp.asarray(before[name]), first, last, 1.0)
        np.testing.assert_allclose(after[name], ours_after, atol=1e-5, rtol=1e-5)


@pytest.mark.parity
def test_we_read_what_peft_trains(tmp_path):
    torch, peft, diffusers = (pytest.importorskip(name) for name in ("torch", "peft", "diffusers"))
    model, before = torch_model(), kernels(torch_model())
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False))
    layers = peft.get_peft_model_state_dict(model)
    metadata = diffusers.training_utils._collate_lora_metadata({"transformer": model})
    diffusers.WanPipeline.save_lora_weights(str(tmp_path), transformer_lora_layers=layers, **metadata)
    unfused = torch_output(model)
    model.fuse_lora()
    model.unload_lora()
    np.testing.assert_allclose(torch_output(model), unfused, atol=1e-5, rtol=1e-5)
    file, after = read_lora(tmp_path, shapes_of()), kernels(model)
    assert file.matched == len(layers)
    assert torch.isfinite(unfused).all()
    for name, (first, last) in file.factors.items():
        ours_after = add_product(jnp.asarray(before[name]), first, last, 1.0)
        np.testing.assert_allclose(after[name], ours_after, atol=1e-5, rtol=1e-5)


@pytest.mark.parity
def test_gradients_and_a_step_of_adamw_are_those_of_torch():
    from sora_jax.train.optimizer import OptimizerConfig, make_optimizer

    torch, lora = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.lora")
    linear = Linear(8, 6, axes=("embed", "heads"), rngs=Rngs(0))
    linear.add_adapter(2, 1.5, rngs=Rngs(1))
    structure, params, axes = split_model(linear)
    params["lora_b"] = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)
    x = np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32)
    trained = {name: params[name] for name in ("lora_a", "lora_b")}

    def loss(trained):
        return jnp.sum(jnp.sin(merge_model(structure, {**params, **trained})(jnp.asarray(x))))

    gradients = jax.grad(loss)(trained)
    config = OptimizerConfig(name="adamw", b1=0.9, b2=0.99, weight_decay=0.01, clip_norm=1e9)
    optimizer = make_optimizer(config, {name: axes[name] for name in trained})
    updates, _ = optimizer.update(gradients, optimizer.init(trained), trained)
    base = torch.nn.Linear(8, 6)
    layer = lora.Linear(base, "default", r=2, lora_alpha=3, config=lora.LoraConfig(r=2, lora_alpha=3))
    theirs = {"lora_a": layer.lora_A["default"].weight, "lora_b": layer.lora_B["default"].weight}
    with torch.no_grad():
        base.weight.copy_(torch.tensor(np.asarray(params["kernel"]).T.copy()))
        base.bias.copy_(torch.tensor(np.asarray(params["bias"]).copy()))
        for name, one in theirs.items():
            one.copy_(torch.tensor(np.asarray(params[name]).T.copy()))
    torch.sin(layer(torch.tensor(x))).sum().backward()
    for name, one in theirs.items():
        np.testing.assert_allclose(gradients[name], one.grad.numpy().T, atol=1e-5, rtol=1e-5)
    torch.optim.AdamW(theirs.values(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01).step()
    for name, one in theirs.items():
        stepped = params[name] - 1e-2 * updates[name]
        np.testing.assert_allclose(stepped, one.detach().numpy().T, atol=1e-5, rtol=1e-5)
