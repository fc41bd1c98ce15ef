"""configs/base.py is the vocabulary: every key is explained, read by something, and there on purpose."""

import ast
import io
import runpy
import tokenize
import typing
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base
from sora_jax.core.errors import UserError
from sora_jax.experiment.kinds import KINDS
from sora_jax.experiment.kinds.autoencoder import AutoencoderStage
from sora_jax.experiment.kinds.diffusion import DiffusionStage
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.models.interop.variants import HEAD_DIM, TEXT_TOKENS, VARIANTS
from sora_jax.video.shapes import clip_token_grid, count

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
OTHERS = [name for name in CONFIGS if name != "base.py"]
# Those that train public models, of which they want the files.
PUBLIC = [name for name in CONFIGS if name.startswith("wan")]


def load(name: str, *size: str) -> ConfigDict:
    return runpy.run_path(str(ROOT / "configs" / name))["get_config"](*size)


def leaves(tree: ConfigDict, path: str = "") -> list[str]:
    found = []
    for key in sorted(tree):
        inner = tree[key]
        # The shares of the context of a stage are named by kinds.
        deeper = isinstance(inner, ConfigDict) and not (key == "context" and "kind" in tree)
        found += leaves(inner, f"{path}{key}.") if deeper else [f"{path}{key}"]
    return found


def accesses(tree: ast.AST) -> set[str]:
    """Returns the attributes that are read, and the strings, which `getattr` may read by."""
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    return attributes | {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def fields_and_reads(source: str) -> tuple[dict[str, list[str]], list[tuple[str, set[str]]]]:
    """Returns the annotated fields of each class, and by class ("" outside of any) the names that are read."""
    fields, reads = {}, []
    for node in ast.parse(source).body:
        name = node.name if isinstance(node, ast.ClassDef) else ""
        if isinstance(node, ast.ClassDef):
            annotated = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            fields[name] = [n.target.id for n in annotated if isinstance(n.target, ast.Name)]
        reads.append((name, accesses(node)))
    return fields, reads


def unread(classes: list[str], sources: list[str]) -> list[str]:
    """Returns "Class.field" for every field of `classes` that nothing outside of its class reads."""
    fields, reads = {}, []
    for source in sources:
        more_fields, more_reads = fields_and_reads(source)
        fields |= more_fields
        reads += more_reads
    found = []
    for name in classes:
        others = set().union(*(read for reader, read in reads if reader != name))
        found += [f"{name}.{field}" for field in fields[name] if field not in others]
    return found


def config_classes(cls: type) -> set[type]:
    """Returns `cls`, all dataclasses among the types of its fields, at any depth, and those that it derives from."""
    found = {base for base in cls.__mro__ if hasattr(base, "__dataclass_fields__")}
    for hint in typing.get_type_hints(cls).values():
        if hasattr(hint, "__dataclass_fields__"):
            found |= config_classes(hint)
    return found


def test_every_key_is_there_on_purpose():
    """A key is added, renamed or removed together with its line in keys.txt."""
    assert leaves(load("base.py")) == (ROOT / "tests" / "keys.txt").read_text().split()


def test_every_key_is_read_by_something_else_than_its_own_class():
    classes = {
        cls.__name__ for root in (Settings, *(kind.stage for kind in KINDS.values())) for cls in config_classes(root)
    }
    assert {"Settings", "NoiseConfig", "CropConfig", "ScheduleConfig", "GuidanceConfig"} <= classes
    sources = [path.read_text() for path in (ROOT / "sora_jax").rglob("*.py")]
    assert unread(sorted(classes), sources) == []


def test_a_key_that_nothing_reads_is_found():
    source = """
class Config:
    used: int
    by_name: int
    idle: int

    def __post_init__(self):
        assert self.idle > 0

def f(config):
    config.idle = 3
    return config.used + getattr(config, "by_name")
"""
    assert unread(["Config"], [source]) == ["Config.idle"]


def unexplained(source: str) -> list[str]:
    """Returns the assignments of values to keys without a comment on their lines."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        # Deeper names, such as stage.optimizer.name, change a key that is explained elsewhere.
        is_key = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
        is_group = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) != "placeholder"
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if is_key and not is_group and not comments & set(lines):
            found.append(ast.unparse(target))
    return found


def test_every_key_has_a_comment_on_its_line():
    assert unexplained((ROOT / "configs" / "base.py").read_text()) == []


def test_a_key_without_a_comment_is_found():
    source = "c.a = 1  # one\nc.b = 2\nc.g = g = ConfigDict()\ng.c = placeholder(int)\nc.d = (  # four\n    4,\n)\n"
    assert unexplained(source) == ["c.b", "g.c"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_can_be_given_on_the_command_line(name):
    """What is None is a placeholder of a type: of another None a flag cannot say what it should be."""
    config = load(name)
    untyped = [key for key in leaves(config) if parent(config, key).get_type(key.split(".")[-1]) is type(None)]
    assert untyped == []


def parent(config: ConfigDict, key: str) -> ConfigDict:
    for part in key.split(".")[:-1]:
        config = config[part]
    return config


@pytest.mark.parametrize("name", OTHERS)
def test_other_configs_have_exactly_the_keys_of_base(name):
    """A config may have other stages, but each has the keys of its kind."""
    config, vocabulary = load(name), load("base.py")
    flat = {"warmup_steps": 0, "decay_share": 0.0, "final_share": 1.0}
    described = base.captioner_stage(steps=1, schedule=base.schedule(1.0, **flat), images=1.0)
    by_kind = {stage.kind: leaves(stage) for stage in (*vocabulary.stages.values(), described)}
    assert {key: leaves(stage) for key, stage in config.stages.items()} == {
        key: by_kind[stage.kind] for key, stage in config.stages.items()
    }
    for tree in (config, vocabulary):
        with tree.unlocked():
            del tree.stages
    assert leaves(config) == leaves(vocabulary)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in PUBLIC])
def test_a_config_is_read(name):
    config = load(name)
    if config.data.source != "shapes":
        with pytest.raises(UserError, match=r"needs (a folder|tar files): pass --config\.data\.path="):
            read_settings(config)
        config.data.path = "clips"
    settings = read_settings(config)
    before = () if name in ("folder.py", "scaling.py", "worlds.py") else ("images",)
    decoder = ("decoder",) if name in ("base.py", "scaling.py", "shapes.py") else ()
    whole = ("autoencoder", *decoder, "prepare", *before, "videos")
    if name == "captions.py":
        whole = ("autoencoder", "prepare", "caption_images", "caption_videos")
        assert settings.captioner_loss.expand_share, "what sample --expand needs"
    elif name in ("control.py", "refine.py"):
        whole = (*(("decoder",) if name == "control.py" else ()), "prepare", name.removesuffix(".py"))
    kinds = [settings.stages[stage].kind for stage in settings.run]
    assert settings.run == whole if not name.startswith("autoencoder") else set(kinds) == {"autoencoder"}
    assert read_settings(config.to_dict()) == settings, "as in config.json"


@pytest.mark.parametrize("kind", ["videos", "both", "images"])
def test_the_config_of_a_folder_is_for_what_the_folder_has(kind):
    config = load("folder.py", kind)
    config.data.path = "clips"
    settings = read_settings(config)
    stage = settings.stages["videos"]
    assert isinstance(stage, DiffusionStage)
    assert set(stage.mix.kinds) == {"videos": {"videos"}, "both": {"images", "videos"}, "images": {"images"}}[kind]
    assert settings.sampling.prompts is None, "captions of the folder"
    frames, most = (1, 1) if kind == "images" else (9, settings.data.max_frames)
    assert settings.sampling.frames == frames
    crops = settings.stages["autoencoder"]
    assert isinstance(crops, AutoencoderStage)
    assert crops.most_frames == most
    size = (frames, *settings.sampling.size)
    tokens = count(clip_token_grid(size, stride=settings.stride, patch=settings.transformer.patch))
    assert tokens <= settings.data.max_tokens, "samples are no larger than clips"


@pytest.mark.parametrize("name", ["folder.py", "autoencoder_f8t4c16.py"])
def test_a_variant_that_is_none_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"^'imges' is none of (videos, both, images|full, toy)$"):
        load(name, "imges")


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_of_a_public_model_is_read_without_its_files(name, variant):
    config, public = load(name, variant), VARIANTS[variant]
    config.data.path = "clips"
    with pytest.raises(UserError, match=r"it must be autoencoder stages.*config\.model=DIR"):
        read_settings(config)
    config.autoencoder.start_from = "none is read"
    if name == "wan_lora.py":
        with pytest.raises(
            UserError, match=r"has no weights to adapt: give stages\.(videos|high)\.start_from or model"
        ):
            read_settings(config)
        config.stages[config.run[1]].start_from = "none is read"
    settings = read_settings(config)
    assert read_settings(config.to_dict()) == settings, "as in config.json"
    transformer = settings.transformer
    assert (transformer.width, transformer.depth, transformer.heads) == (public.width, public.depth, public.heads)
    assert transformer.width // transformer.heads == HEAD_DIM
    assert settings.patch_width == 4 * public.out_channels
    grid = clip_token_grid((public.frames, *public.sizes[0]), stride=settings.stride, patch=transformer.patch)
    assert 0 <= settings.packing.tokens - count(grid) < 2048, "a row holds a clip of the usual size"
    packing, images = settings.packing, {None: 1, 514: 2}[public.image_positions] if public.image_dim else 0
    assert packing.segments * TEXT_TOKENS >= packing.text_tokens, "no text is too long for the clips of a row"
    assert packing.segments * 257 * images < 0.1 * packing.tokens, "room for images is little beside that for clips"
    trained = settings.stages_of(TEXT_TO_VIDEO)
    levels = [settings.stages[stage].levels for stage in trained]
    boundary = public.boundary
    assert levels == ([(0.0, 1.0)] if boundary is None else [(boundary, 1.0), (0.0, boundary)])
    noise = settings.diffusion.noise
    assert (noise.uniform_share, noise.uniform_shift, settings.sampling.shift) == (1.0, public.shift, public.shift)
    for stage in trained:
        adapts = name == "wan_lora.py"
        assert (settings.stages[stage].trainable, settings.stages[stage].frozen_dtype) == (
            (r".*\.lora_[ab]", "bfloat16") if adapts else (None, None)
        )
        assert (transformer.lora.rank == 32) == adapts
        assert settings.stages[stage].gives_known_tokens == public.any_known


@pytest.mark.parametrize("name", PUBLIC)
def test_a_variant_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="'t2v' is none of t2v_1_3b, "):
        load(name, "t2v")


def test_a_stage_has_the_shared_optimizer_but_for_what_it_sets_itself():
    config = load("base.py")
    config.stages.images.optimizer.weight_decay = 0.5
    config.optimizer.name = "adamw"
    optimizers = {name: stage.optimizer for name, stage in read_settings(config).stages.items() if name != "prepare"}
    assert [optimizers[name].name for name in ("autoencoder", "images", "videos")] == ["muon", "adamw", "adamw"]
    assert [optimizers[name].weight_decay for name in ("autoencoder", "images", "videos")] == [0.0, 0.5, 0.0]
    assert read_settings(config).optimizer == optimizers["videos"]


def test_a_config_of_before_stages_had_optimizers_is_read():
    config = load("base.py").to_dict()
    expected = read_settings(config)
    for name in ("images", "videos"):
        del config["stages"][name]["optimizer"]
    assert read_settings(config) == expected


def test_a_config_is_made_anew_each_time():
    first = load("base.py")
    first.stages.videos.steps = 7
    assert load("base.py").stages.videos.steps != 7


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("autoencoder")])
def test_a_toy_has_the_strides_and_channels_of_the_full_width(name):
    full, toy = load(name), load(name, "toy")
    for config in (full, toy):
        config.data.path = "clips"
    full, toy = read_settings(full), read_settings(toy)
    assert (full.stride, full.autoencoder.channels, full.run) == (toy.stride, toy.autoencoder.channels, toy.run)
