"""The command that studies framing: what it prints for a cluster."""

import shlex

from tests.conftest import ROOT, TOY


def test_printed_commands_may_be_given_in_any_folder(python):
    done = python("-m", "sora_jax.framing", f"--config={TOY}", "--workdir=runs/framing", "--do=print")
    assert done.returncode == 0, done.stderr
    first, *runs = (shlex.split(line) for line in done.stdout.splitlines())
    folder = ROOT / "runs" / "framing"
    assert f"--workdir={folder}/shared" in first
    for name, command in zip(("native", "square"), runs, strict=True):
        assert {f"--workdir={folder}/{name}", f"--config.autoencoder.start_from={folder}/shared"} <= set(command)
