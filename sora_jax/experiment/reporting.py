"""The report of a run as its workdir is now."""

from sora_jax.core.distributed import is_first
from sora_jax.experiment.advice import advice
from sora_jax.experiment.kinds import KINDS
from sora_jax.experiment.schema import Settings
from sora_jax.reports.run_page import REPORT_FILE, write_report
from sora_jax.train.workdir import Workdir


def report_run(workdir: Workdir, settings: Settings) -> list[str]:
    """Returns what to change in the config, in sentences, after writing the report, and prints where that is.

    The first process does it; the others get no sentence.
    """
    told = advice(workdir) if is_first() else []
    if is_first():
        pairs = [name for name in settings.run if KINDS[settings.stages[name].kind].shows_pairs]
        write_report(workdir.path, told, stages=settings.run, pairs=pairs)
    print(f"report: {workdir.path / REPORT_FILE}", flush=True)
    return told
