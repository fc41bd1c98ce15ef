"""With diffusers (marker parity): what image pipelines show the model and the latents that they make, and ours."""

import dataclasses
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model
from sora_jax.data.packing.packs import PackLayout
from sora_jax.data.packing.plan import Budget
from sora_jax.diffusion.grids import Grid
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.sampler import Sampler
from sora_jax.models.codec import Codec
from sora_jax.models.interop.wan import load_wan
from sora_jax.models.interop.wan_autoencoder import config_of, latent_statistics, load_wan_autoencoder
from sora_jax.models.interop.wan_files import describe_wan
from sora_jax.models.text_to_video import TextToVideo
from sora_jax.models.vision.clip import load_image_encoder
from sora_jax.models.vision.shown import Shower
from sora_jax.video.latents import normalise
from sora_jax.video.shown import ShownConfig
from tests import small

TEXT_DIM, IMAGE_DIM, IMAGE_TOKENS, CHANNELS = 16, 16, 10, 4
FRAMES, HEIGHT, WIDTH, STEPS, GUIDANCE, SHIFT = 9, 16, 32, 4, 5.0, 3.0
RNG = np.random.default_rng(0)
FIRST, LAST = (RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(2))
STATES = {"shown": RNG.normal(size=(5, TEXT_DIM)), "": RNG.normal(size=(1, TEXT_DIM))}
# in channels, CLIP, positions of image tokens, per-token timestep
KINDS = {
    "I2V-14B": (2 * CHANNELS + 4, True, None, False),
    "FLF2V-14B": (2 * CHANNELS + 4, True, 2 * IMAGE_TOKENS, False),
    "I2V-A14B": (2 * CHANNELS + 4, False, None, False),
    "TI2V-5B": (CHANNELS, False, None, True),
}


class Texts:
    """Texts of fixed states."""

    recipe, cost, stored = types.MappingProxyType({"text_encoder": "fixed"}), "", True
    arrays = types.MappingProxyType({"text_BKE": (TEXT_DIM, np.dtype(np.float32))})

    def count(self, text):
        return len(STATES[text])

    def cut(self, text, max_tokens):
        del max_tokens
        return text

    def encode(self, texts):
        return [{"text_BKE": STATES[text].astype(np.float32)} for text in texts]


class States(nnx.Module):
    def __call__(self, pack, segment_BK, dtype):
        del segment_BK
        return pack["text_BKE"].astype(dtype)


class Encoder:
    tokenizer, width = Texts(), TEXT_DIM

    def flops(self, work):
        del work
        return 0.0

    def module(self, *, remat, rngs):
        del remat, rngs
        return States()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Noised(Canvas):
    """A canvas with given noise."""

    noise_LP: np.ndarray

    def noise(self, patch_width):
        del patch_width
        return self.noise_LP


def pipeline(kind):
    """Returns a pipeline of tiny parts with random weights, none of them special."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    channels, clip, positions, expand = KINDS[kind]
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.8, 1.2, 1.0],
    )
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        image_dim=IMAGE_DIM if clip else None,
        added_kv_proj_dim=24 if clip else None,
        pos_embed_seq_len=positions,
    )
    for name, value in (*transformer.named_parameters(), *vae.named_parameters()):
        if value.ndim < 2 or "scale_shift" in name or "pos_embed" in name:
            value.data += 0.2 * torch.randn_like(value)
    config = transformers.CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
        hidden_act="gelu",
    )
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    made = diffusers.WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=scheduler,
        image_processor=processor if clip else None,
        image_encoder=transformers.CLIPVisionModel(config).eval() if clip else None,
        transformer=transformer.eval(),
        expand_timesteps=expand,
    )
    made.set_progress_bar_config(disable=True)
    return made


class Ours:
    """Our parts of a pipeline, read from the files that it is saved in."""

    def __init__(self, pipe, folder, *, last):
        for name in ("vae", "transformer", "image_encoder"):
            if getattr(pipe, name) is not None:
                getattr(pipe, name).save_pretrained(folder / name)
        config = config_of(folder / "vae")
        mean_C, scale_C = latent_statistics(folder / "vae", config.channels) or (None, None)
        assert mean_C is not None
        assert scale_C is not None
        weights = load_wan_autoencoder(folder / "vae", config)
        self.codec = Codec(config, weights, mean_C=mean_C, scale_C=scale_C)
        shape = describe_wan(folder / "transformer")
        self.transformer = shape.config(time_rate=4.0, remat="none")
        loaded = load_wan(folder / "transformer")
        self.params = {f"transformer.{name}": value for name, value in loaded.items()}
        self.shower = None
        if (channels := self.transformer.given_channels) is not None:
            # The pipeline has transformers' processor, so the encoder crops as that does.
            images = None if pipe.image_encoder is None else load_image_encoder(folder / "image_encoder", fit="crop")
            tokens, width = (0, 0) if images is None else (images.config.tokens, images.config.width)
            shown = ShownConfig(channels=channels, last=last, image_tokens=tokens, image_width=width)
            self.shower = Shower(shown, self.codec, images)

    def canvas(self, noise_CTHW, *, last):
        """Returns the canvas of a first frame, and of a last one where it is asked for."""
        grid = (1 + (FRAMES - 1) // 4, HEIGHT // 16, WIDTH // 16)
        noise = noise_CTHW.transpose(1, 2, 3, 0)
        told: dict[str, Any] = {}
        if self.shower is not None:
            told["shown"] = self.shower.of_frames(FRAMES, FIRST, LAST if last else None)
        else:
            latent = normalise(self.codec.encode(FIRST[None, None]), self.codec.mean_C, self.codec.scale_C)[0]
            told["latent_THWC"] = np.concatenate([latent, np.zeros((grid[0] - 1, *latent.shape[1:]), np.float32)])
            told["known_thw"] = np.broadcast_to(np.arange(grid[0])[:, None, None] == 0, grid)
        noise_LP = noise.reshape(grid[0], grid[1], 2, grid[2], 2, CHANNELS).transpose(0, 1, 3, 2, 4, 5)
        noise_LP = np.ascontiguousarray(noise_LP.reshape(-1, 4 * CHANNELS))
        return Noised(prompt="shown", grid=grid, fps=16.0, seed=0, noise_LP=noise_LP, **told)

    def latents(self, canvases):
        text: Any = Encoder()

        def build(key):
            width = 4 * CHANNELS
            return TextToVideo(self.transformer, text, patch_width=width, rngs=Rngs(key))

        layout = PackLayout(
            budget=Budget(tokens=16, text_tokens=16, segments=2),
            patch=(1, 2, 2),
            channels=CHANNELS,
            temporal_stride=4,
            time_rate=4.0,
            tokenizer=text.tokenizer,
            shown=None if self.shower is None else self.shower.config,
        )
        config = SolverConfig(
            steps=STEPS,
            method="unipc",
            path=small.path_config(prediction="velocity"),
            noise=small.noise_config(),
            guidance=small.guidance_config(scale=GUIDANCE, interval=(0.0, 1.0)),
            grid=Grid(name="diffusers", shift=SHIFT),
            keeps_known=True,
        )
        structure = abstract_model(build)[0]
        dtype = jnp.dtype(jnp.float32)
        sampler = Sampler(structure, self.codec, layout, rows=1, config=config, dtype=dtype, shower=self.shower)
        return sampler.latents(self.params, canvases)


def theirs(pipe, noise, *, last):
    import torch

    def states(name):
        padded = np.zeros((1, 512, TEXT_DIM), np.float32)
        padded[0, : len(STATES[name])] = STATES[name]
        return torch.from_numpy(padded)

    given = {"last_image": picture(LAST)} if last else {}
    made = pipe(
        image=picture(FIRST),
        prompt_embeds=states("shown"),
        negative_prompt_embeds=states(""),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=torch.from_numpy(noise[None]),
        output_type="latent",
        **given,
    )
    return made.frames[0].numpy().transpose(1, 2, 3, 0)


def their_channels(pipe, *, last):
    import torch

    def pixels(image):
        return pipe.video_processor.preprocess(picture(image), height=HEIGHT, width=WIDTH)

    with torch.no_grad():
        _, condition = pipe.prepare_latents(
            pixels(FIRST),
            1,
            CHANNELS,
            HEIGHT,
            WIDTH,
            FRAMES,
            torch.float32,
            torch.device("cpu"),
            None,
            None,
            pixels(LAST) if last else None,
        )
    return condition[0].numpy().transpose(1, 2, 3, 0)


def picture(image):
    from PIL import Image

    return Image.fromarray(image)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "last"),
    [("I2V-14B", False), ("FLF2V-14B", True), ("I2V-A14B", False), ("I2V-A14B", True), ("TI2V-5B", False)],
)
def test_an_image_becomes_the_same_latents(kind, last, tmp_path):
    pipe = pipeline(kind)
    ours = Ours(pipe, tmp_path, last={"I2V-14B": "never", "FLF2V-14B": "must"}.get(kind, "may"))
    shape = (CHANNELS, 1 + (FRAMES - 1) // 4, HEIGHT // 8, WIDTH // 8)
    noise, other = np.random.default_rng(3).normal(size=(2, *shape)).astype(np.float32)
    canvas = ours.canvas(noise, last=last)
    if canvas.shown is not None:
        expected = their_channels(pipe, last=last)
        np.testing.assert_array_equal(canvas.shown.given_THWC[..., :4], expected[..., :4])
        np.testing.assert_allclose(canvas.shown.given_THWC[..., 4:], expected[..., 4:], rtol=0, atol=2e-5)
    # Beside another in one row, which it must not see.
    found, _ = ours.latents([canvas, ours.canvas(other, last=last)])
    expected = theirs(pipe, noise, last=last)
    print(f"{kind}: largest difference {np.abs(found - expected).max():.2e}, deviation {expected.std():.2f}")
    assert expected.std() > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
