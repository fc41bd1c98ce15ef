"""Weights of strangers: safetensors that is whole, or a sentence; nothing that is read can run."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.models.interop.weights import WEIGHTS_FILE, read_shapes, read_weights


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "it ran")


def of_numpy(save, canary: Canary) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.array([canary], object))
    return buffer.getvalue()


def of_torch(canary: Canary) -> bytes:
    """Returns the zip that torch.save writes, as far as a reader of pickles needs it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(canary, protocol=2))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


PICKLES = {
    **{f"protocol {n}": lambda canary, n=n: pickle.dumps({"weight": canary}, protocol=n) for n in range(6)},
    "torch": of_torch,
    "npy": lambda canary: of_numpy(np.save, canary),
    "npz": lambda canary: of_numpy(np.savez, canary),
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("name", ["a.safetensors", "a", "a.npy", "a.keras", "a.PTH", "a.pkl"])
def test_pickles_are_refused_by_name_and_by_content_and_never_run(tmp_path, kind, name):
    (tmp_path / name).write_bytes(PICKLES[kind](Canary(tmp_path / "ran")))
    for read in (read_weights, read_shapes):
        with pytest.raises(UserError, match=rf"{name} (is|holds) a pickle, which can run any code .*save_file"):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_the_canary_runs_where_a_pickle_is_read(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "ran")))
    assert (tmp_path / "ran").read_text() == "it ran"


def safetensors(header: dict | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN = {
    "a header longer than the file": safetensors({}, length=2**62),
    "a header of 90 MB that is not there": safetensors({}, length=90 * 10**6),
    "overlapping offsets": safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "a gap": safetensors({"a": tensor([1], 4, 8)}, bytes(8)),
    "a shape over its bytes": safetensors({"a": tensor([10**9, 10], 0, 8)}, bytes(8)),
    "a shape under its bytes": safetensors({"a": tensor([1], 0, 8)}, bytes(8)),
    "a shape beyond 64 bits": safetensors({"a": tensor([2**63, 2], 0, 8)}, bytes(8)),
    "a negative shape": safetensors({"a": tensor([-2], 0, 8)}, bytes(8)),
    "offsets beyond the file": safetensors({"a": tensor([10**9], 0, 4 * 10**9)}, bytes(8)),
    "bytes behind the last": safetensors({"a": tensor([1], 0, 4)}, bytes(99)),
    "a type that holds objects": safetensors({"a": tensor([1], 0, 8, "OBJ")}, bytes(8)),
    "a type without a numpy type": safetensors({"a": tensor([8], 0, 8, "F8_E4M3")}, bytes(8)),
    "complex numbers": safetensors({"a": tensor([1], 0, 8, "C64")}, bytes(8)),
    "deep nesting": safetensors(b'{"a":' + b"[" * 10**5),
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_refused_before_memory_is_taken(tmp_path, kind):
    (tmp_path / "a.safetensors").write_bytes(BROKEN[kind])
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"is not a whole safetensors file|is not read here: save"):
            read_weights(tmp_path / "a.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_every_type_of_weights_is_read(tmp_path):
    arrays = {kind: np.arange(3).astype(kind) for kind in ("float64", "float32", "float16", "int64", "uint8", "bool")}
    arrays["bfloat16"] = np.arange(3).astype(ml_dtypes.bfloat16)
    save_file(arrays, tmp_path / "a.safetensors")
    found = read_weights(tmp_path / "a.safetensors")
    assert {name: array.dtype for name, array in found.items()} == {n: array.dtype for n, array in arrays.items()}
    assert read_shapes(tmp_path / "a.safetensors") == dict.fromkeys(arrays, (3,))


INDICES = {
    "{": "index.json is damaged",
    "[]": "index.json is damaged",
    '{"weight_map": 3}': "index.json is damaged",
    '{"weight_map": {"a": 3}}': "index.json is damaged",
    '{"weight_map": {}}': "names no file",
    '{"weight_map": {"a": "pytorch_model.bin"}}': "pytorch_model.bin is a pickle",
    '{"weight_map": {"a": "../outside.safetensors"}}': r"model/outside.safetensors does not exist",
    '{"weight_map": {"a": "/etc/passwd"}}': r"model/passwd does not exist",
}


@pytest.mark.parametrize("written", INDICES)
def test_an_index_names_safetensors_beside_it(tmp_path, written):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / f"{WEIGHTS_FILE}.index.json").write_text(written)
    with pytest.raises(UserError, match=INDICES[written]):
        read_weights(folder)


def test_an_index_leads_to_all_its_files(tmp_path):
    for name in "ab":
        save_file({name: np.full(2, ord(name), np.float32)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / f"{WEIGHTS_FILE}.index.json").write_text(json.dumps(index))
    assert {name: array[0] for name, array in read_weights(tmp_path).items()} == {"a": 97.0, "b": 98.0}
