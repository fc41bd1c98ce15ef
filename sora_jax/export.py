"""The trained autoencoder of a run as public Wan weights, for other tools.

python -m sora_jax.export --workdir=runs/base --output=vae
python -m sora_jax.export --workdir=runs/base --output=vae --layout=original

The first is read by diffusers' `AutoencoderKLWan.from_pretrained("vae")`; the second has the names of Wan's own code.
"""

from collections.abc import Sequence

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.paths import check_writable
from sora_jax.experiment.loading import load_codec
from sora_jax.experiment.settings import read_settings
from sora_jax.models.interop.wan_autoencoder import LAYOUTS, save_wan_autoencoder
from sora_jax.train.workdir import Workdir

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_OUTPUT = _FLAGS.path("output", None, "The folder to write, which must hold no model yet.")
_LAYOUT = _FLAGS.choice("layout", "diffusers", LAYOUTS, "Whose names the weights get: diffusers' or Wan's own.")


def main(_: Sequence[str]) -> None:
    """Writes the averaged weights and the statistics of the latents."""
    if not _OUTPUT.value:
        raise UserError("nowhere to write: pass --output=DIR")
    check_writable(f"{_OUTPUT.value}/model")
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    codec = load_codec(workdir, settings)
    layout = LAYOUTS[LAYOUTS.index(_LAYOUT.value)]
    print(save_wan_autoencoder(_OUTPUT.value, codec.config, codec.params, codec.mean_C, codec.scale_C, layout))


if __name__ == "__main__":
    run_command(main, _FLAGS)
