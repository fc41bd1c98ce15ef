"""What a drill is, and all of them by name.

A drill is a function `(bench, count) -> Result` whose docstring says what is done and what must hold. To add one, write
it in the module of its subject with the decorator `drill`, and name a new module in `table.SUBJECTS`.
"""

import dataclasses
from collections.abc import Callable

from sora_jax.benchmarks.drills.bench import Bench


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a drill.

    Attributes:
      passed: Trials in which all held that must hold.
      tried: Trials.
      figure: What was measured, or how the first trial failed, in a few words.
      enough: Trials that have to pass; None: all.
    """

    passed: int
    tried: int
    figure: str
    enough: int | None = None

    @property
    def good(self) -> bool:
        """Whether the target was met."""
        return self.tried > 0 and self.passed >= (self.tried if self.enough is None else self.enough)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drill:
    """A drill by its name.

    Attributes:
      name: As `--only` takes it.
      target: What must hold, in the words of the table.
      full: Trials for the table.
      quick: Trials where only an answer is wanted.
      run: The drill.
    """

    name: str
    target: str
    full: int
    quick: int
    run: Callable[[Bench, int], Result]


DRILLS: dict[str, Drill] = {}


def drill(*, target: str, full: int, quick: int = 1) -> Callable[[Callable[[Bench, int], Result]], Drill]:
    """Enters a function among `DRILLS` under its own name."""

    def enter(run: Callable[[Bench, int], Result]) -> Drill:
        entered = Drill(name=run.__name__, target=target, full=full, quick=quick, run=run)
        assert run.__doc__, f"{entered.name} does not say what it does"
        assert entered.name not in DRILLS, entered.name
        DRILLS[entered.name] = entered
        return entered

    return enter


class Tally:
    """Counts trials: `check` takes what went wrong in one, "" for nothing."""

    def __init__(self) -> None:
        self.passed = self.tried = 0
        self.fault = ""

    def check(self, fault: str) -> None:
        """Counts a trial."""
        self.tried += 1
        self.passed += not fault
        self.fault = self.fault or fault

    def result(self, figure: str, *, enough: int | None = None) -> Result:
        """Returns the count with `figure`, and with how the first trial failed where one did."""
        said = "; ".join(part for part in (figure, self.fault and f"first failure: {self.fault}") if part)
        return Result(passed=self.passed, tried=self.tried, figure=said, enough=enough)
