"""A clock that stands still until it is told."""


class FakeTime:
    """Returns seconds when it is called, as `time.monotonic` does."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.seconds += seconds
