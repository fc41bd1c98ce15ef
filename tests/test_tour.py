"""The notebook of the documentation: its cells are Python, and do on a run what they say."""

import json
import shutil

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def code():
    """Returns the source of each cell of code."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_cells_compile_and_hold_nothing_of_the_machine_they_ran_on():
    for number, source in enumerate(code()):
        compile(source, f"cell {number}", "exec")
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs"), "clear the outputs before you save it"


@pytest.mark.slow
def test_the_cells_run_one_after_the_other(python, toy_workdir, tmp_path):
    shutil.copytree(toy_workdir, tmp_path / "runs" / "base")
    said = [
        "print([clip.shape for clip in clips], longer.shape, show(longer).size)",
        "assert back.shape == clips[0].shape and (longer[:9] == clips[0]).all()",
        "assert scores['autoencoder']['clips'] == 8",
    ]
    script = tmp_path / "cells.py"
    script.write_text("\n".join([f"import os\nos.chdir({str(tmp_path)!r})", *code(), *said]))
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[(9, 24, 40, 3), (9, 24, 40, 3)] (13, 24, 40, 3) (2080, 96)"
