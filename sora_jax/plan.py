"""What a run will need of a machine that need not be there: memory, FLOPs, bytes, the floor of the step time.

  python -m sora_jax.plan --config=configs/dit_2b.py --topology=v5p:4x4x4
  python -m sora_jax.plan --config=configs/dit_2b.py --topology=v5e:16x16 --slices=2 --json=plan.json
  python -m sora_jax.plan --config=configs/base.py --topology=cpu:8 --part=all
  python -m sora_jax.plan --config=configs/dit_2b.py --topology=v5p:4x4x4 --part=sample --size=1088x1920 --seconds=60

Compiles the very programs of the run, sharded as the config says; nothing is computed, no data is read. TPUs need
libtpu (`pip install "sora_jax[tpu]"`), and no TPU. docs/sharding.md says how to read what is printed. The exit code is
0 where everything fits and 3 where something does not.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.paths import check_writable
from sora_jax.planning.topology import describe_machine, prepare_environment

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/base.py", "The experiment; keys are overridden as --config.KEY=VALUE.")
_TOPOLOGY = _FLAGS.string("topology", "cpu:8", "v5e:AxB, v5p:AxBxC or v6e:AxB chips, or cpu:N simulated devices.")
_SLICES = _FLAGS.integer("slices", 1, "Such slices, joined by the network of the data centre.")
_PART = _FLAGS.choice(
    "part",
    "train",
    ["train", "sample", "autoencoder", "text", "all"],
    "train: the step of each kind of stage of the run; sample: the solver's loop; autoencoder: its steps, encoding and "
    "decoding; text: the pass of a frozen text encoder.",
)
_FLAGS.rename("what", "part")
_STAGE = _FLAGS.strings("stage", "Stages whose step to plan, instead of the largest of each kind.")
_SEGMENT_TOKENS = _FLAGS.integer(
    "segment_tokens", None, "Tokens of the segments that rows are counted full of; default: data.max_tokens."
)
_SIZE = _FLAGS.string("size", None, "HEIGHTxWIDTH, in px, of what is sampled, or coded; default: sampling.size.")
_SECONDS = _FLAGS.number("seconds", None, "Duration of what is sampled; default: that of sampling.frames.")
_HBM_GB = _FLAGS.number("hbm_gb", None, "GB of a chip that the program may use; default: all that there are.")
_JSON = _FLAGS.figures("File to write everything to as well.")
_HLO = _FLAGS.path("hlo", None, "Folder to write the compiled programs to, as XLA prints them.")


def main(_: Sequence[str]) -> None:
    """Plans, prints and writes."""
    _check_flags()
    config = _CONFIG.value
    prepare_environment(_TOPOLOGY.value, slices=_SLICES.value)
    _forget_paths(config)
    # Here, because they bring jax, which reads the environment once.
    from sora_jax.experiment.model_settings import warn_of_unheard
    from sora_jax.experiment.preflight import check_start
    from sora_jax.experiment.settings import for_machine, read_settings
    from sora_jax.planning import compilation, plans, steps

    warn_of_unheard(config, _CONFIG.given)
    machine = describe_machine(_TOPOLOGY.value, slices=_SLICES.value)
    settings = for_machine(read_settings(config), accelerator=machine.chip is not None)
    unknown = [name for name in _STAGE.value if name not in settings.run]
    if unknown:
        raise UserError(f"--stage={unknown[0]} is no stage of the run: it has {', '.join(settings.run)}")
    mesh = check_start(settings, machine.devices, samples=False)
    found = steps.planned_programs(
        settings,
        mesh,
        part=_PART.value,
        names=_STAGE.value or None,
        segment_tokens=_SEGMENT_TOKENS.value,
        size=_SIZE.value,
        seconds=_SECONDS.value,
    )
    print(f"{len(found)} programs for {machine.name}: {'; '.join(program.name for program in found)}", flush=True)
    made, pace = [], compilation.Pace()
    for number, program in enumerate(found, start=1):
        print(f"{number} of {len(found)}: tracing {program.name}", flush=True)
        plan = plans.make_plan(
            program,
            settings,
            machine,
            mesh,
            limit=None if _HBM_GB.value is None else 1e9 * _HBM_GB.value,
            keep_in=_HLO.value,
            pace=pace,
            say=lambda text: print(f"  {text}", flush=True),
        )
        print("\n".join(plans.lines(plan)), flush=True)
        made.append(plan)
    if _JSON.value:
        file = Path(_JSON.value)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([plans.as_json(plan) for plan in made], indent=2) + "\n")
    plans.check_fits(made)


def _check_flags() -> None:
    if _HLO.value:
        check_writable(f"{_HLO.value}/program")
    if _HBM_GB.value is not None and _HBM_GB.value <= 0:
        raise UserError(f"--hbm_gb={_HBM_GB.value:g} must be more than 0")


def _forget_paths(config: Any) -> None:
    """Lets a config that leaves paths to the user be read, those of clips and of public weights: nothing is read."""
    from sora_jax.experiment.kinds import KINDS
    from sora_jax.experiment.stage_settings import AUTOENCODER

    for data in (config.data, *config.more_data.values()):
        if data.source != "shapes" and not data.path:
            data.path = "none is read"
    trainers = [name for name, kind in KINDS.items() if kind.stage.trains == AUTOENCODER]
    trained = any(config.stages[name].kind in trainers for name in config.run if name in config.stages)
    if not trained and config.model is None and config.autoencoder.weights is None:
        config.autoencoder.start_from = config.autoencoder.start_from or "none is read"
    for name in config.run if config.transformer.lora.rank is not None and config.model is None else ():
        if name in config.stages and "start_from" in config.stages[name]:
            config.stages[name].start_from = config.stages[name].start_from or "none is read"


if __name__ == "__main__":
    run_command(main, _FLAGS)
