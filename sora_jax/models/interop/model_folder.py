"""What lies in the folder of a public model as people download it: which variant it is, and the files of its parts.

Three layouts: the folder of a diffusers pipeline, that of the code which came with the models, and single files as
ComfyUI takes them. All is told by names and by the heads of files, so that what cannot work is said before memory is
taken.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.models.interop.json_files import read_config
from sora_jax.models.interop.variants import VARIANTS, Variant
from sora_jax.models.interop.wan_autoencoder import config_of
from sora_jax.models.interop.wan_files import described
from sora_jax.models.interop.wan_shape import WanShape
from sora_jax.models.interop.weights import WEIGHTS_FILE, Stored, read_shapes

_INDEX = "model_index.json"
# Where parts lie in the folder, beside the folder itself, and what of a name of a tensor tells which part a file is.
_FOLDERS = ("", "diffusion_models", "unet", "text_encoders", "vae", "clip_vision")
_SIGNS: dict[str, tuple[str, ...]] = {
    "transformer": ("head.modulation", "patch_embedding.weight"),
    "autoencoder": ("decoder.conv1.weight", "decoder.conv_in.weight"),
    "text": ("shared.weight", "token_embedding.weight", "encoder.embed_tokens.weight"),
    "image": ("vision_model.embeddings.class_embedding", "visual.cls_embedding"),
}
# Pickled files of the layout of the public code, and what says the same without a pickle.
_PICKLED = {
    "text": ("models_t5*.pth", "text_encoder/ of the model's diffusers folder, or umt5_xxl_fp16.safetensors"),
    "autoencoder": ("Wan2*VAE*.pth", "vae/ of the model's diffusers folder, or wan_2.1_vae.safetensors"),
    "image": ("models_clip*.pth", "image_encoder/ of the model's diffusers folder, or clip_vision_h.safetensors"),
}
# The modulation of the output, by the names of both layouts.
_TABLES = ("scale_shift_table", "head.modulation")
_TITLES = {"text": "text encoder", "autoencoder": "autoencoder", "image": "image encoder"}
_TOKENIZERS = ("tokenizer", "google/umt5-xxl", "tokenizer.json", "spiece.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A public model on disk.

    Attributes:
      folder: Of all.
      name: Of the variant, a key of `VARIANTS`.
      variant: What it is sampled with; the boundary is the folder's own where it names one.
      shape: Of the transformer, of each of them where there are two.
      transformers: Their files or folders, that for high noise levels first.
      autoencoder: File or folder; None: the folder has none.
      text: Of the text encoder; None: the folder has none.
      tokenizer: File or folder of its tokens; None: beside the text encoder, or in it.
      image: Of the encoder of images; None: the variant needs none.
      notes: What whoever uses it should know, in sentences.
    """

    folder: Path
    name: str
    variant: Variant
    shape: WanShape
    transformers: tuple[Path, ...]
    autoencoder: Path | None
    text: Path | None
    tokenizer: Path | None
    image: Path | None
    notes: tuple[str, ...]

    def lacks(self, part: str) -> str:
        """Returns a sentence on a part, "text", "autoencoder" or "image", that the folder has not."""
        pattern, instead = _PICKLED[part]
        if pickled := sorted(self.folder.glob(pattern)):
            return (
                f"{pickled[0]} is a pickle, which can run any code when it is read: put {instead}, into {self.folder}"
            )
        return f"{self.folder} has no {_TITLES[part]}: put {instead}, into it"


def find_model(path: str | Path) -> ModelFiles:
    """Returns the public model in a folder; nothing but the heads of files is read.

    Weights of one shape belong to several variants: the folder's name tells them apart, or FOLDER#VARIANT does, with a
    key of `VARIANTS`. Raises UserError for a folder that holds no whole model, or two that do not go together.
    """
    named = str(path)
    folder, _, asked = (named, "", "") if Path(named).is_dir() else named.rpartition("#")
    place = Path(folder or named)
    if not place.is_dir():
        raise UserError(f"the model {place} is no folder: give the one that holds all files of the model")
    if asked and asked not in VARIANTS:
        raise UserError(f"the variant {asked!r} of {place} is none of {', '.join(VARIANTS)}")
    index = _read_index(place)
    parts = _of_pipeline(place, index) if index else _of_files(place)
    read = [described(one) for one in parts["transformer"]]
    shapes = [shape for shape, _ in read]
    _check_alike(parts["transformer"], shapes)
    _check_apart(parts["transformer"], [tensors for _, tensors in read])
    notes: list[str] = []
    name = asked or _variant_of(place, shapes[0], len(shapes), index, notes)
    variant = _with_boundary(VARIANTS[name], index, len(shapes), notes)
    found = {part: next(iter(parts[part]), None) for part in ("autoencoder", "text", "image")}
    _check_autoencoder(found["autoencoder"], parts["transformer"][0], shapes[0])
    return ModelFiles(
        folder=place,
        name=name,
        variant=variant,
        shape=shapes[0],
        transformers=tuple(parts["transformer"]),
        autoencoder=found["autoencoder"],
        text=found["text"],
        tokenizer=next((place / one for one in _TOKENIZERS if (place / one).exists()), None),
        image=found["image"] if shapes[0].image_dim is not None else None,
        notes=tuple(notes),
    )


def _read_index(folder: Path) -> dict[str, Any]:
    """Returns what a pipeline of diffusers says of itself; empty where the folder is none."""
    file = folder / _INDEX
    if not file.is_file():
        return {}
    if not (index := read_config(file)):
        raise UserError(f"{file} is damaged (it is empty); download it again")
    return index


def _of_pipeline(folder: Path, index: dict[str, Any]) -> dict[str, list[Path]]:
    """Returns the parts of a pipeline of diffusers, each a folder of its own; raises UserError for one that lacks."""
    named = {
        "transformer": ("transformer", "transformer_2"),
        "autoencoder": ("vae",),
        "text": ("text_encoder",),
        "image": ("image_encoder",),
    }
    # A part that a pipeline does without is listed as two nulls.
    listed = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    for name in listed & {name for names in named.values() for name in names}:
        if not (folder / name).is_dir():
            raise UserError(f"{folder} lacks {name}/, which its {_INDEX} names: download it again")
    parts = {part: [folder / name for name in names if (folder / name).is_dir()] for part, names in named.items()}
    if not (folder / "transformer").is_dir():
        raise UserError(f"{folder} lacks transformer/: download it again")
    return parts


def _of_files(folder: Path) -> dict[str, list[Path]]:
    """Returns the parts of the other layouts: folders of experts, the folder itself, and single files by content."""
    parts: dict[str, list[Path]] = {part: [] for part in _SIGNS}
    experts = [folder / name for name in ("high_noise_model", "low_noise_model")]
    if missing := [one for one in experts if not one.is_dir()]:
        if len(missing) == 1:
            raise UserError(f"{folder} lacks {missing[0].name}/, the other of two experts: download it again")
        if any((folder / name).is_file() for name in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json")):
            parts["transformer"].append(folder)
    else:
        parts["transformer"] += experts
    loose = sorted(file for name in _FOLDERS for file in (folder / name).glob("*.safetensors"))
    whole = bool(parts["transformer"])
    for file in loose:
        if file.name.startswith(WEIGHTS_FILE.removesuffix(".safetensors")):
            continue  # of the transformer in the folder itself
        part = _part_of(file)
        if part is not None and not (whole and part == "transformer"):
            parts[part].append(file)
    parts["transformer"] = _ordered(folder, parts["transformer"])
    for part in ("autoencoder", "text", "image"):
        if len(parts[part]) > 1:
            two = " and ".join(file.name for file in parts[part][:2])
            raise UserError(f"{folder} has {two}, each a whole {_TITLES[part]}: keep the one that is meant")
    return parts


def _part_of(file: Path) -> str | None:
    """Returns which part of a model a file holds, by names of its tensors; None where it is none that is known."""
    names = set(read_shapes(file))

    def has(signs: Iterable[str]) -> bool:
        return any(name == sign or name.endswith(f".{sign}") for name in names for sign in signs)

    return next((part for part, signs in _SIGNS.items() if has(signs)), None)


def _ordered(folder: Path, files: list[Path]) -> list[Path]:
    """Returns one transformer, or two with that for high noise levels first."""
    if not files:
        raise UserError(
            f"{folder} holds no model: it has neither {_INDEX} nor {WEIGHTS_FILE} nor a .safetensors file of a "
            "transformer"
        )
    if len(files) == 1:
        return files

    def of(word: str) -> Callable[[Path], bool]:
        return lambda file: re.search(word, file.name, re.IGNORECASE) is not None

    high, low = list(filter(of("high"), files)), list(filter(of("low"), files))
    if len(files) > 2 or len(high) != 1 or len(low) != 1:
        listed = ", ".join(file.name for file in files)
        raise UserError(
            f"{folder} has {len(files)} transformers, {listed}: keep one, or two with high and low in their names"
        )
    return [*high, *low]


def _check_alike(files: list[Path], shapes: list[WanShape]) -> None:
    """Raises UserError where two experts are not of one model."""
    fields = [field.name for field in dataclasses.fields(shapes[0]) if field.name != "layout"]
    for shape in shapes[1:]:
        if other := [name for name in fields if getattr(shape, name) != getattr(shapes[0], name)]:
            said = ", ".join(f"{name} {getattr(shapes[0], name)} and {getattr(shape, name)}" for name in other)
            raise UserError(f"{files[0]} and {files[1]} are experts of two models ({said}): take both of one")


def _check_apart(files: list[Path], tensors: list[Mapping[str, Stored]]) -> None:
    """Raises UserError where two experts are one, by a small tensor that training changes."""
    tables = [one[name].open() for one in tensors for name in _TABLES if name in one]
    if len(files) == 2 and np.array_equal(tables[0], tables[1]):
        raise UserError(f"{files[0]} and {files[1]} are the same weights: download the two experts again")


def _variant_of(folder: Path, shape: WanShape, experts: int, index: dict[str, Any], notes: list[str]) -> str:
    """Returns the name of the variant of a shape, the nearest where it is no public one; doubts go to `notes`."""

    def kind(one: Any) -> tuple[bool, bool, bool]:
        return one.in_channels > one.out_channels, one.image_dim is not None, one.image_positions is not None

    names = [name for name, one in VARIANTS.items() if kind(one) == kind(shape) and one.experts == experts]
    if not names:
        raise UserError(
            f"{folder} has {experts} transformers of {shape.in_channels} channels in and {shape.out_channels} out, as "
            f"no variant that is known: {', '.join(VARIANTS)}"
        )
    any_known = bool(index.get("expand_timesteps")) or shape.out_channels == VARIANTS["ti2v_5b"].out_channels
    names = [name for name in names if VARIANTS[name].any_known == any_known] or names
    width = shape.width if shape.width in {VARIANTS[name].width for name in names} else VARIANTS[names[0]].width
    names = [name for name in names if VARIANTS[name].width == width]
    if len(names) > 1:
        pixels = re.search(r"(480|720)p?(?!\d)", folder.resolve().name, re.IGNORECASE)
        fitting = [name for name in names if pixels is not None and f"{pixels[1]}p" in name]
        if not fitting:
            notes.append(
                f"{folder} may be {' or '.join(names)}, which have the same shapes: {names[0]} is taken; "
                f"give {folder}#{names[1]} for the other"
            )
        names = fitting or names
    if width != shape.width:
        notes.append(f"{folder} has width {shape.width}, as no public model: it is sampled as {names[0]}")
    return names[0]


def _with_boundary(variant: Variant, index: dict[str, Any], experts: int, notes: list[str]) -> Variant:
    """Returns the variant with the boundary that a pipeline names; one without a second expert is noted, not taken."""
    boundary = index.get("boundary_ratio")
    if boundary is None:
        return variant
    if experts == 1:
        notes.append(f"{_INDEX} has boundary_ratio {boundary}, but there is one transformer: it is asked at all levels")
        return variant
    if not isinstance(boundary, int | float) or not 0 < boundary < 1:
        raise UserError(f"{_INDEX} has boundary_ratio {boundary!r}, which must be between 0 and 1: download it again")
    return dataclasses.replace(variant, boundary=float(boundary))


def _check_autoencoder(file: Path | None, transformer: Path, shape: WanShape) -> None:
    """Raises UserError where the autoencoder's latent is not the transformer's."""
    if file is None:
        return
    if (channels := config_of(file).channels) != shape.out_channels:
        raise UserError(
            f"{file} is an autoencoder of {channels} channels and {transformer} makes {shape.out_channels}: models of "
            "16 take that of Wan 2.1, Wan 2.2's A14B too, and TI2V-5B, of 48, that of Wan 2.2"
        )
