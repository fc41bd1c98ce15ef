"""Public models through our sampler and through diffusers' pipelines, from the same files."""

import numpy as np
import pytest
from safetensors import safe_open

import sora_jax
from sora_jax.experiment.exporting import export_lora
from sora_jax.experiment.run import run
from sora_jax.generate.canvas import Canvas
from sora_jax.video.patches import unpatchify
from tests import public_model

SIZE, FRAMES, STEPS = (32, 64), 5, 4
TEXTS = ("a red circle moves right", "dark")

pytestmark = pytest.mark.parity


def small_transformer(seed, *, channels):
    """Returns a transformer of which nothing is zero or one as it starts."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=public_model.TEXT_DIM,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            near = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(near + scale * torch.randn_like(parameter))
    return model.eval()


def small_autoencoder(channels):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(9)
    new = {}
    if channels == 48:
        rng = np.random.default_rng(3)
        new = {
            "decoder_base_dim": 3,
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
            "latents_mean": rng.normal(size=48).tolist(),
            "latents_std": rng.uniform(0.5, 2, size=48).tolist(),
        }
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        **new,
    ).eval()


def write(folder, *, experts, channels, **options):
    """Returns the pipeline of diffusers that lies in the folder."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    transformers = [small_transformer(seed, channels=channels) for seed in range(experts)]
    pipeline = diffusers.WanPipeline(
        None,
        None,
        small_autoencoder(channels),
        scheduler,
        *transformers,
        **options,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    public_model.write_text_encoder(folder / "text_encoder", folder / "tokenizer")
    return pipeline


def padded(states_KE):
    torch = pytest.importorskip("torch")
    rows = np.zeros((1, 512, states_KE.shape[1]), np.float32)
    rows[0, : len(states_KE)] = np.asarray(states_KE, np.float32)
    return torch.from_numpy(rows)


def opened(path, **options):
    changes = {"sampling.grid": "diffusers", "sampling.shift": 3.0, "precision": "float32"}
    return sora_jax.open_model(path, changes=changes, **options)


def canvas_of(model):
    stride = model.settings.token_stride
    grid = 1 + (FRAMES - 1) // stride[0], SIZE[0] // stride[1], SIZE[1] // stride[2]
    return Canvas(prompt=TEXTS[0], negative=TEXTS[1], grid=grid, fps=model.settings.sampling.fps, seed=7)


def theirs(pipeline, model, channels, guidance, output_type):
    """Returns what diffusers makes of the noise and the texts of our canvas."""
    torch = pytest.importorskip("torch")
    canvas = canvas_of(model)
    noise = unpatchify(canvas.noise(model.settings.patch_width), grid=canvas.grid, patch=(1, 2, 2), channels=channels)
    prompt, negative = (padded(one["text_BKE"]) for one in model.settings.text_encoder.tokenizer.encode(TEXTS))
    with torch.no_grad():
        return pipeline(
            height=SIZE[0],
            width=SIZE[1],
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=guidance[0],
            guidance_scale_2=guidance[1],
            latents=torch.from_numpy(noise.transpose(3, 0, 1, 2).copy()[None]),
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            output_type=output_type,
        ).frames[0]


@pytest.mark.parametrize(
    ("experts", "channels", "options", "guidance"),
    [
        (1, 16, {}, (5.0, None)),
        (2, 16, {"boundary_ratio": 0.875}, (4.0, 3.0)),
        (1, 48, {"expand_timesteps": True}, (5.0, None)),
    ],
    ids=["text", "two experts", "a time for each token"],
)
def test_latents_and_videos_are_those_of_diffusers(tmp_path, experts, channels, options, guidance):
    pipeline = write(tmp_path, experts=experts, channels=channels, **options)
    model = opened(tmp_path)
    assert model.settings.sampling.guidance.scale == guidance[0]
    sampler = model.models.sampler(model.solver(steps=STEPS), videos=1)
    (found_THWC,) = sampler.latents(model.models.params, [canvas_of(model)])
    wanted_THWC = theirs(pipeline, model, channels, guidance, "latent").numpy().transpose(1, 2, 3, 0)
    assert np.abs(wanted_THWC).std() > 0.1
    np.testing.assert_allclose(found_THWC, wanted_THWC, rtol=0, atol=1e-4)
    (clip,) = sampler(model.models.params, [canvas_of(model)])
    np.testing.assert_allclose(clip, theirs(pipeline, model, channels, guidance, "np") * 255, rtol=0, atol=0.6)


@pytest.mark.parametrize("experts", [1, 2])
def test_adapters_of_twenty_steps_do_the_same_in_diffusers(tmp_path, toy_config, experts):
    options = {"boundary_ratio": 0.875} if experts == 2 else {}
    pipeline = write(tmp_path / "model", experts=experts, channels=16, **options)
    stages = {"high": (0.875, 1.0), "low": (0.0, 0.875)} if experts == 2 else {"videos": None}
    variant = "t2v_a14b" if experts == 2 else "t2v_1_3b"
    config = public_model.adapter_config(toy_config(), f"{tmp_path / 'model'}#{variant}", stages, steps=20)
    config.precision = "float32"
    run(config, tmp_path / "run", until="diffusion")
    session = sora_jax.open_run(tmp_path / "run")
    files = export_lora(session.models.workdir, session.settings, str(tmp_path / "out"), dtype="float32")
    assert len(files) == experts
    guidance, before = ((4.0, 3.0) if experts == 2 else (5.0, None)), opened(tmp_path / "model")
    plain = theirs(pipeline, before, 16, guidance, "latent").numpy()
    for file, second in zip(files, (False, True), strict=False):
        pipeline.load_lora_weights(str(file), adapter_name=file.stem, load_into_transformer_2=second)
        part = pipeline.transformer_2 if second else pipeline.transformer
        with safe_open(file, framework="numpy") as weights:
            assert sum(".lora_" in name for name, _ in part.named_parameters()) == len(weights.keys())
    wanted = theirs(pipeline, before, 16, guidance, "latent").numpy()
    assert np.abs(wanted - plain).max() > 1e-2, "the adapters do something"
    model = opened(tmp_path / "model", lora=[str(file) for file in files])
    sampler = model.models.sampler(model.solver(steps=STEPS), videos=1)
    (found_THWC,) = sampler.latents(model.models.params, [canvas_of(model)])
    np.testing.assert_allclose(found_THWC, wanted.transpose(1, 2, 3, 0), rtol=1e-5, atol=1e-5)
