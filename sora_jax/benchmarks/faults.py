"""What happens when a run is killed, its storage rots or fills, its data are damaged, its peers go: drills and a table.

  python -m sora_jax.benchmarks.faults --json=faults.json
  python -m sora_jax.benchmarks.faults --quick --only=kill_random,bit_flip

Each drill breaks something in a run of seconds, started as a user starts it, and says how often all held that must
hold. A full run from a checkout renews its rows of the table in docs/reliability.md. Exit code 1: a drill fell short.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from sora_jax.benchmarks.drills.bench import Bench
from sora_jax.benchmarks.drills.table import PAGE, chosen, counts_of, line_of, renewed, row_of, write_table
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.config_files import find_config
from sora_jax.core.errors import UserError
from sora_jax.core.files import write_atomically

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_QUICK = _FLAGS.switch("quick", False, "A few trials of each drill; the table in the documentation stays.")
_ONLY = _FLAGS.words("only", "Names of drills; all by default.")
_COUNTS = _FLAGS.words("counts", "NAME=TRIALS of drills that are to be tried more or less often.")
_SEED = _FLAGS.integer("seed", 0, "Of the moments, bits and files that drills choose.", least=0)
_CONFIG = _FLAGS.string("config", find_config("configs/base.py"), "The base config, which is run at a small size.")
_CLIPS = _FLAGS.path("clips", None, "Folder with real/ and damaged/ clips; by default some are drawn.")
_RENEW = _FLAGS.switch("renew", None, "Renew the table in the documentation. By default unless --quick.")


def main(_: Sequence[str]) -> None:
    """Runs the drills and tells what came of them; ends with code 1 if any fell short."""
    jax.config.update("jax_platforms", "cpu")  # drills simulate their devices
    drills = chosen(_ONLY.value)
    counts = counts_of(drills, _COUNTS.value, quick=_QUICK.value)
    if not Path(_CONFIG.value).is_file():
        raise UserError(f"--config={_CONFIG.value} is not here: start from a checkout, or name its configs/base.py")
    rows = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the end of `Bench`, which ends what it started
    settings = {"config": _CONFIG.value, "seed": _SEED.value, "clips": _CLIPS.value or os.environ.get("SORA_JAX_CLIPS")}
    with tempfile.TemporaryDirectory(prefix="faults") as folder, Bench(Path(folder), **settings) as bench:
        for one in drills:
            rows.append(row_of(one, bench, counts[one.name]))
            print(line_of(rows[-1]), flush=True)
            if _JSON.value is not None:
                write_table(Path(_JSON.value), rows, seed=_SEED.value)
    if PAGE.exists() and (_RENEW.value if _RENEW.value is not None else not _QUICK.value):
        write_atomically(PAGE, renewed(PAGE.read_text(), rows))
        print(f"renewed {PAGE}", flush=True)
    short = [row["drill"] for row in rows if not row["good"]]
    print(f"{len(rows) - len(short)} of {len(rows)} drills met their target; short: {', '.join(short) or 'none'}")
    if short:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, _FLAGS)
