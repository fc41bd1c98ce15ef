"""What the compiler is asked for beyond the program."""

from sora_jax.core.mesh import current_platform


def run_once() -> dict[str, int]:
    """Returns options for `jax.jit` of a program that runs once.

    On CPU LLVM then optimises nothing, which is what takes most of the time; elsewhere there are none.
    """
    return {"xla_backend_optimization_level": 0} if current_platform() == "cpu" else {}
