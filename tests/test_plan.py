"""Plans: made as a user makes them, for simulated devices and, where libtpu is here, for TPUs."""

import dataclasses
import functools
import importlib.util
import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sora_jax.core.chips import CHIPS
from sora_jax.core.config_files import load_config
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.experiment import activations, programs
from sora_jax.experiment.codec_programs import codec_programs
from sora_jax.experiment.kinds.diffusion import DiffusionKind
from sora_jax.experiment.settings import read_settings
from sora_jax.models import flops
from sora_jax.planning import compilation, plans, steps
from sora_jax.planning.topology import links
from tests import toy_captions

TOY = "--config=tests/toy.py"
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.fixture(scope="module")
def plan(python):
    return functools.partial(python, "-m", "sora_jax.plan")


@pytest.fixture(scope="module")
def settings(toy_config):
    return read_settings(toy_config())


@pytest.fixture(scope="module")
def planned(plan, tmp_path_factory):
    """Returns what a whole plan on eight devices printed, and what it wrote."""
    path = tmp_path_factory.mktemp("plans") / "not yet" / "plan.json"
    mesh = "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"
    bucket = "--config.stages.autoencoder.crops.buckets=((5,16,16,8),)"
    done = plan(TOY, "--topology=cpu:8", "--part=all", f"--json={path}", "--segment_tokens=12", bucket, *mesh)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_every_program_of_a_run_is_planned(planned):
    printed, written = planned
    assert [one["name"] for one in written] == [
        "autoencoder: train step on 8 clips of 5x16x16",
        "videos: train step",
        "sampling: the solver's loop",
        "encoding 2 clips, 8 frames of 16x16",
        "decoding a clip, 8 frames of 16x16",
    ]
    assert all(one["name"] in printed for one in written)
    begun = [printed.index(f"{number} of 5: tracing {one['name']}") for number, one in enumerate(written, start=1)]
    done = [printed.index(f"\n{one['name']}\n  machine: cpu:8") for one in written]
    assert printed.startswith(f"5 programs for cpu:8: {'; '.join(one['name'] for one in written)}\n")
    in_turn = [place for pair in zip(begun, done, strict=True) for place in pair]
    assert in_turn == sorted(in_turn), "each is printed as it is done"
    assert len(re.findall(r"^  compiling [\d,]+ operations, (about \d+ s|\d+ s to \d+ (s|min))$", printed, re.M)) == 5
    assert printed.count("fits as far as is known: of this device no limit is") == len(written)
    assert all(one["mesh"] == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2} for one in written)
    assert all(one["needed"] >= one["memory"]["parameters"] > 0 for one in written)
    assert all(one["products"] > 0 and one["hbm"] > one["memory"]["parameters"] for one in written)


def test_how_long_a_program_may_take_is_between_what_others_took():
    pace = compilation.Pace()
    assert (pace.in_words(35_000), pace.in_words(1_000)) == ("40 s to 3 min", "about 10 s")
    pace.took(1_000, 60.0)
    assert pace.in_words(35_000) == "40 s to 35 min"
    pace.took(1_000, 0.1)
    assert pace.in_words(10_000) == "10 s to 10 min"


def test_the_train_step_is_that_of_the_run(planned, settings):
    (step,) = [one for one in planned[1] if one["name"] == "videos: train step"]
    row = flops.work_of(np.repeat([[1, 2, 3]], 12, axis=1), np.repeat([[1, 2, 3]], 24, axis=1))
    work = sum((row for _ in range(settings.packing.rows)), flops.NO_WORK)
    text = settings.text_encoder
    assert step["flops"] == flops.step_flops(settings.transformer, text, patch_width=settings.patch_width, work=work)
    memory, parameters = step["memory"], 4 * step["parameters"]
    assert parameters / 8 < memory["parameters"] < parameters, "some are split by fsdp and tensor, small ones are not"
    assert memory["ema"] == memory["parameters"], "one track"
    assert memory["moments"] > memory["parameters"], "one moment of the matrices, two of the rest"
    assert memory["activations"] > 0
    axes = {tuple(one["axes"]) for one in step["sent"]}
    assert {("fsdp",), ("tensor",)} <= axes
    gradients = sum(one["bytes"] for one in step["sent"] if "data" in one["axes"])
    assert gradients >= memory["parameters"] * 0.9, "an all-reduce of two brings each gradient once"


def test_a_minute_is_planned_as_windows(settings):
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.devices()[:1])
    short, long = (programs.sampling_program(settings, mesh, seconds=seconds) for seconds in (None, 60.0))
    assert (short.times, short.facts["frames"]) == (1, settings.sampling.frames)
    assert long.times > 1
    assert long.facts["frames"] / settings.sampling.fps == pytest.approx(60, abs=1)
    assert long.facts["windows of each"] == long.times
    found = long.held["batch"].pack["tokens_BLP"].shape
    assert found == short.held["batch"].pack["tokens_BLP"].shape, "the memory is that of a row"


def test_sampling_with_a_public_encoder_is_planned_without_its_files(toy_config):
    config = toy_config()
    config.text.encoder = "umt5"
    settings = read_settings(config)
    planned = programs.sampling_program(settings, make_mesh(settings.mesh))
    assert planned.facts["frames"] == settings.sampling.frames
    assert "text_BKE" in planned.held["batch"].pack


def test_what_does_not_fit_says_what_would_help_and_ends_with_3(plan, tmp_path):
    path = tmp_path / "plan.json"
    done = plan(TOY, "--topology=cpu:8", "--stage=videos", "--hbm_gb=0.0002", f"--json={path}")
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("DoesNotFit: videos: train step needs ")
    assert line.endswith(" MB of a chip")
    assert "does not fit: needs" in done.stdout
    assert "of 0.20 MB" in done.stdout
    assert "mesh.fsdp 1 -> 2" in done.stdout
    assert "transformer.remat 'full'" in done.stdout
    assert not json.loads(path.read_text())[0]["fits"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--topology=v9:4x4",),
            "topology 'v9:4x4' is not known: give one such as v5e:4x4, v5p:4x4x4, v6e:16x16, cpu:8",
        ),
        (("--topology=v5p:4x4",), "topology 'v5p:4x4' is not known"),
        (("--topology=cpu:8", "--slices=2"), "--slices=2: give 1 or more, and more than 1 for a TPU alone"),
        (("--topology=cpu:8", "--hbm_gb=0"), "--hbm_gb=0 must be more than 0"),
        (("--topology=cpu:8", "--config.mesh.fsdp=3"), "fsdp=3 x sequence=1 x tensor=1 does not fit 8 devices"),
        (("--topology=cpu:8", "--config.packing.rows=12"), "packing.rows is 12, not a multiple of 8"),
        (("--topology=cpu:8", "--stage=films"), "--stage=films is no stage of the run: it has autoencoder, prepare"),
        (("--topology=cpu:8", "--segment_tokens=99"), "segments of 99 tokens: a row holds 36"),
        (("--part=sample", "--size=17x16"), "height 17 is not divisible by"),
        (("--part=autoencoder", "--size=17x16"), "height 17 is not divisible by"),
        (("--part=sample", "--seconds=61"), "longer than the 60 s of sampling.max_seconds"),
    ],
)
def test_a_mistake_ends_in_a_sentence(plan, arguments, said):
    done = plan(TOY, *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert said in line


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_is_said_how_to_get_it(plan):
    done = plan(TOY, "--topology=v5p:2x2x1")
    assert done.returncode == 2
    assert 'v5p:2x2x1 is described by libtpu, which is not here: pip install "sora_jax[tpu]"' in done.stderr


@needs_libtpu
def test_a_slice_that_cannot_be_is_refused_in_a_sentence(plan):
    done = plan(TOY, "--topology=v5p:3x4x5")
    assert done.returncode == 2
    assert "libtpu refuses topology v5p:3x4x5" in done.stderr.splitlines()[-1]


@needs_libtpu
def test_a_step_is_compiled_for_a_tpu(plan, tmp_path):
    path = tmp_path / "plan.json"
    done = plan(TOY, "--topology=v5e:2x2", "--stage=videos", "--config.mesh.fsdp=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(path.read_text())
    assert step["limit"] == CHIPS["v5e"].hbm
    assert {"arithmetic", "memory", "links of data"} <= step["floor"].keys()
    assert 0 < step["mfu"] < 1


def test_the_compilers_complaints_are_read():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.00G) exceeds "
        "available HBM (15.75G)."
    )
    assert compilation.too_much(said) == (17 * 2**30, 15.75 * 2**30)
    said = "RESOURCE_EXHAUSTED: ... Ran out of memory in memory space hbm. Used 29.03G of 15.75G hbm. Exceeded ..."
    assert compilation.too_much(said) == (29.03 * 2**30, 15.75 * 2**30)
    with pytest.raises(RuntimeError, match="something else"):
        compilation.too_much("INTERNAL: something else")


def test_a_program_that_the_compiler_refuses_for_its_size_does_not_fit(settings):
    mesh = make_mesh(settings.mesh)
    (program,) = steps.train_programs(settings, mesh, ["videos"], segment_tokens=12)

    class Refused:
        def as_text(self) -> str:
            return "an operation\n" * 35_000

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: temporaries (3.00G) exceeds available HBM (2.00G).")

    machine = plans.Machine(name="small", chip=None, devices=jax.devices(), slices=1)
    refused = dataclasses.replace(program, lower=Refused)
    told = []
    plan = plans.make_plan(refused, settings, machine, mesh, limit=None, say=told.append)
    assert told == ["compiling 35,000 operations, 40 s to 3 min"]
    assert (plan.fits, plan.compiled, plan.needed, plan.limit) == (False, False, 3 * 2**30, 2 * 2**30)
    assert "  does not fit: needs 3.22 GB of 2.15 GB; what would help, most first:" in plans.lines(plan)


@pytest.mark.slow
def test_nothing_is_computed_for_a_plan(settings, compiled):
    """On described devices nothing can be, and what is computed under their mesh goes there."""
    mesh = make_mesh(settings.mesh)
    found = steps.train_programs(settings, mesh, steps.largest_stages(settings), segment_tokens=12)
    found += [programs.sampling_program(settings, mesh), *codec_programs(settings, mesh)]
    jax.clear_caches()
    jax.random.key(0)
    assert len(compiled) > 0, "what is computed is heard of"
    compiled.clear()
    with jax.set_mesh(mesh):
        for program in found:
            program.lower()
            if program.kept is not None:
                program.kept()
    assert compiled == []


def test_advice_names_the_model_that_the_stage_trains():
    settings = read_settings(toy_captions.get_config())
    nothing = {f.name: None for f in dataclasses.fields(plans.Plan)}
    memory = {"parameters": 6e4, "moments": 6e4, "ema": 6e4, "activations": 9e6}
    facts = {"rows": 8, "tokens of a row": settings.packing.tokens, "micro-batches": 2}
    mesh = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
    known = {**nothing, "memory": memory, "needed": 1e7, "limit": 1e6, "facts": facts, "mesh": mesh}
    plan = plans.Plan(**{**known, "name": "caption_videos: train step"})
    (full,) = (line for line in plans.advise(plan, settings) if "remat 'full'" in line)
    width, numbers = settings.captioner.width, settings.packing.tokens + 2 * settings.packing.text_tokens
    kept = plans.bytes_in_words(4 * numbers * width * 4)
    assert full.startswith(f"captioner.remat 'full': activations {kept}, "), (
        "one block of the encoder, two of the text's"
    )


def test_a_stack_of_blocks_keeps_its_inputs_alone_under_full_rematerialisation(settings):
    mesh = make_mesh(MeshConfig(data=8, fsdp=1, sequence=1, tensor=1))
    kept = {}
    for depth in (2, 6):
        for remat in ("none", "full"):
            transformer = dataclasses.replace(settings.transformer, depth=depth, remat=remat)
            changed = dataclasses.replace(settings, transformer=transformer)
            (program,) = steps.train_programs(changed, mesh, ["videos"], segment_tokens=12)
            assert program.kept is not None
            kept[depth, remat] = program.kept()
    row = settings.packing.tokens * settings.transformer.width * 4
    assert (kept[6, "full"] - kept[2, "full"]) / 4 == row, "of each block one row a device, in float32"
    assert kept[6, "none"] - kept[2, "none"] > 10 * (kept[6, "full"] - kept[2, "full"])


def test_values_are_split_as_their_shapes_say(settings):
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, sequence=2, tensor=2))
    ways = activations.of_rows(mesh, {}, rows=8, tokens=36, split=frozenset([16]))
    assert [ways(shape) for shape in ((3, 8, 36, 7), (8, 36, 16), (8, 9, 7), (3, 32, 18), (5, 5), ())] == [
        4,
        8,
        2,
        8,
        1,
        1,
    ]
    ways = activations.of_clips(mesh, {}, clips=4)
    assert [ways(shape) for shape in ((4, 5, 16, 16, 8), (4, 5, 2, 2, 8), (4, 3), (3, 4))] == [8, 2, 2, 1]


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip at its place in the torus."""

    coords: tuple[int, int, int]


def test_a_ring_has_two_links_and_a_line_one():
    torus = np.vectorize(lambda *coords: Chip(coords), otypes=[object])(*np.indices((4, 4, 2)))
    assert links(torus, (0,), CHIPS["v5p"]) == 2
    assert links(torus, (0, 1), CHIPS["v5p"]) == 4
    assert links(torus, (0, 1, 2), CHIPS["v5p"]) == 5, "two chips are no ring"
    assert links(torus, (0, 1), CHIPS["v6e"]) == 2, "its rings have 16"
    assert links(torus.reshape(4, 2, 2, 2), (1,), CHIPS["v5p"]) == 1, "half of a ring is a line"


def test_segments_that_no_row_holds_are_refused(settings):
    with pytest.raises(UserError, match="segments of 0 tokens: a row holds 36, give 1 to that many"):
        programs.work_of_rows(settings, segment_tokens=0)


def test_half_size_context_of_the_large_config_asks_for_at_most_a_third_more():
    """Of the arithmetic, which binds: as many of the longest clips in a step, each with edges beside it."""
    found = []
    for name in ("configs/dit_2b.py", "configs/dit_2b.py:edges"):
        config = load_config(name)
        config.data.path = config.autoencoder.start_from = "none is read"
        one = read_settings(config)
        (batch,) = DiffusionKind().batches(one, "videos", segment_tokens=one.data.max_tokens)
        found.append((batch.flops + batch.recomputed, batch))
    (plain, without), (more, beside) = found
    assert without.facts["segments of a row"] == beside.facts["segments of a row"] == 2
    assert beside.facts["tokens beside it"] == 32768 // 4
    assert 1.25 < more / plain <= 1.35
    tokens = [one.shapes["tokens_BLP"].shape for one in (without, beside)]
    assert tokens[1][1] / tokens[0][1] == 1.25
    assert "part_BL" in beside.shapes


@pytest.mark.parametrize(("segment_tokens", "beside"), [(28, 7), (32, 0)])
def test_a_clip_that_no_row_holds_with_what_is_beside_it_goes_without(toy_config, segment_tokens, beside):
    config = toy_config()
    config.context.kinds, config.stages.videos.context = ("grey",), ConfigDict({"grey": 1.0})
    (batch,) = DiffusionKind().batches(read_settings(config), "videos", segment_tokens=segment_tokens)
    assert batch.facts.get("tokens beside it", 0) == beside
