"""Public models through our sampler and through diffusers' pipelines, from the same files."""

import numpy as np
import pytest

import sora_jax
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
    torch = pytest.importorskip("torch")
    pipeline = write(tmp_path, experts=experts, channels=channels, **options)
    changes = {"sampling.grid": "diffusers", "sampling.shift": 3.0, "precision": "float32"}
    model = sora_jax.open_model(tmp_path, changes=changes)
    assert model.settings.sampling.guidance.scale == guidance[0]
    stride = model.settings.token_stride
    grid = 1 + (FRAMES - 1) // stride[0], SIZE[0] // stride[1], SIZE[1] // stride[2]
    canvas = Canvas(prompt=TEXTS[0], negative=TEXTS[1], grid=grid, fps=model.settings.sampling.fps, seed=7)
    sampler = model.models.sampler(model.solver(steps=STEPS), videos=1)
    (found_THWC,) = sampler.latents(model.models.params, [canvas])
    noise = unpatchify(canvas.noise(model.settings.patch_width), grid=grid, patch=(1, 2, 2), channels=channels)
    prompt, negative = (padded(one["text_BKE"]) for one in model.settings.text_encoder.tokenizer.encode(TEXTS))

    def run(output_type):
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

    wanted_THWC = run("latent").numpy().transpose(1, 2, 3, 0)
    assert np.abs(wanted_THWC).std() > 0.1
    np.testing.assert_allclose(found_THWC, wanted_THWC, rtol=0, atol=1e-4)
    (clip,) = sampler(model.models.params, [canvas])
    np.testing.assert_allclose(clip, run("np") * 255, rtol=0, atol=0.6)  # of whole numbers
