"""The public Wan models: what tells them apart, and what each was made to be sampled with.

Their files say the shapes; steps, shift, guidance, the negative prompt and the statistics of latents stand in the code
that came with them, and so here. A model that is sampled otherwise than it was made for gives worse videos.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# What all have: text tokens that the transformer sees, width of their encoder, sinusoids of a noise level, head width.
TEXT_TOKENS = 512
FREQUENCY_DIM = 256
HEAD_DIM = 128
PATCH = (1, 2, 2)
ROPE_THETA = 10_000.0

# Away from the gaudy, still and blurred, from subtitles and paintings, from bad hands and faces, from walking back.
_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
_SMALL = ((480, 832), (832, 480))
_LARGE = ((720, 1280), (1280, 720))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One public model.

    Attributes:
      title: Its public name.
      width: Of the transformer.
      mlp_width: Hidden width of its feed-forward.
      heads: Attention heads.
      depth: Blocks.
      in_channels: Of what the transformer is given at a latent position: noise, and where there are more than
        `out_channels` a mask and a latent.
      out_channels: Of the latent.
      image_dim: Width of the tokens of an image that attention sees next to the text; None: it sees none.
      image_positions: Of such tokens that have an embedding of their own; None: they have none.
      experts: Transformers: 1, or one for the high and one for the low noise levels.
      boundary: Noise level from which on upwards the first of two experts is asked; None for one.
      any_known: Whether each token has its own noise level, so that any may be given.
      steps: Of the solver.
      shift: Of its schedule, more for larger videos.
      guidance: Scale at high and at low noise levels.
      negative: The negative prompt.
      frames: Of a video, 1 + 4 n.
      fps: Frames per second.
      sizes: Height and width, px, the usual one first.
      time_rate: Latent frames per second, a position each.
    """

    title: str
    width: int
    mlp_width: int
    heads: int
    depth: int
    in_channels: int
    out_channels: int
    image_dim: int | None
    image_positions: int | None
    experts: int
    boundary: float | None
    any_known: bool
    steps: int
    shift: float
    guidance: tuple[float, float]
    negative: str
    frames: int
    fps: float
    sizes: tuple[tuple[int, int], ...]
    time_rate: float

    @property
    def takes_image(self) -> bool:
        """Whether the transformer is given a latent beside the noise: a first frame, or a first and a last one."""
        return self.in_channels > self.out_channels


_T2V_14B = Variant(
    title="Wan2.1-T2V-14B",
    width=5120,
    mlp_width=13824,
    heads=40,
    depth=40,
    in_channels=16,
    out_channels=16,
    image_dim=None,
    image_positions=None,
    experts=1,
    boundary=None,
    any_known=False,
    steps=50,
    shift=5.0,
    guidance=(5.0, 5.0),
    negative=_NEGATIVE,
    frames=81,
    fps=16.0,
    sizes=(*_SMALL, *_LARGE),
    time_rate=4.0,
)
_I2V_14B = dataclasses.replace(
    _T2V_14B,
    title="Wan2.1-I2V-14B-720P",
    in_channels=36,
    image_dim=1280,
    steps=40,
    negative="镜头晃动，" + _NEGATIVE,
    sizes=_LARGE,
)
# By the names that configs and options give them.
VARIANTS: dict[str, Variant] = {
    "t2v_1_3b": dataclasses.replace(
        _T2V_14B, title="Wan2.1-T2V-1.3B", width=1536, mlp_width=8960, heads=12, depth=30, sizes=_SMALL
    ),
    "t2v_14b": _T2V_14B,
    "i2v_14b_480p": dataclasses.replace(_I2V_14B, title="Wan2.1-I2V-14B-480P", shift=3.0, sizes=_SMALL),
    "i2v_14b_720p": _I2V_14B,
    "flf2v_14b": dataclasses.replace(
        _I2V_14B,
        title="Wan2.1-FLF2V-14B-720P",
        image_positions=514,
        steps=50,
        shift=16.0,
        negative="镜头切换，镜头晃动，" + _NEGATIVE,
    ),
    "t2v_a14b": dataclasses.replace(
        _T2V_14B, title="Wan2.2-T2V-A14B", experts=2, boundary=0.875, steps=40, shift=12.0, guidance=(4.0, 3.0)
    ),
    "i2v_a14b": dataclasses.replace(
        _T2V_14B,
        title="Wan2.2-I2V-A14B",
        in_channels=36,
        experts=2,
        boundary=0.9,
        steps=40,
        guidance=(3.5, 3.5),
    ),
    "ti2v_5b": dataclasses.replace(
        _T2V_14B,
        title="Wan2.2-TI2V-5B",
        width=3072,
        mlp_width=14336,
        heads=24,
        depth=30,
        in_channels=48,
        out_channels=48,
        any_known=True,
        frames=121,
        fps=24.0,
        sizes=((704, 1280), (1280, 704)),
        time_rate=6.0,
    ),
}

# Mean and deviation of each channel of the latents that the public transformers were trained on, by channels.
_STATISTICS: dict[int, tuple[Sequence[float], Sequence[float]]] = {
    16: (
        (
            *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
            *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        ),
        (
            *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
            *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
        ),
    ),
    48: (
        (
            *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
            *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
            *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
            *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        ),
        (
            *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
            *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
            *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
            *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
        ),
    ),
}


def public_statistics(channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (mean_C, scale_C), float64, of the latents of the public autoencoder of so many channels.

    None where there is none: of 16 channels is that of Wan 2.1, of 48 that of Wan 2.2's TI2V-5B.
    """
    if channels not in _STATISTICS:
        return None
    mean, scale = _STATISTICS[channels]
    return np.array(mean, np.float64), np.array(scale, np.float64)
