"""Weights read and written a piece at a time, which files of a folder count, and what is tied."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from warp_core.store import tensors
from warp_core.store.errors import MergeError
from warp_core.store.files import SUMS
from warp_core.store.tensors import (
    INDEX,
    NewWeightFiles,
    WeightFiles,
    WeightTensors,
    in_files,
    in_memory,
    size_of,
    weight_files,
)

THETA = {
    "f64": torch.arange(20.0, dtype=torch.float64).view(4, 5),
    "f32": torch.arange(20.0).view(4, 5).T,
    "f16": torch.arange(9).half(),
    "bf16": torch.arange(9).bfloat16(),
    "i64": torch.arange(-3, 10),
    "u8": torch.arange(9, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 3),
}
SEVEN = 7  # elements of a piece


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(tensors, "PIECE", SEVEN)


def written(folder, theta, file="model.safetensors"):
    folder.mkdir(exist_ok=True)
    whole = torch.contiguous_format
    save_file({name: w.clone(memory_format=whole) for name, w in theta.items()}, folder / file)
    return folder


def plain(tensor):
    return tensor.flatten().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


# Pieces


@pytest.mark.parametrize("read", ["files", "memory"])
def test_pieces_side_by_side_are_the_tensor(read, tmp_path):
    source = WeightFiles(written(tmp_path, THETA)) if read == "files" else WeightTensors(THETA)
    assert source.shapes == {name: tuple(w.shape) for name, w in THETA.items()}
    for name, tensor in THETA.items():
        pieces = [piece.copy() for piece in source.pieces(name)]
        assert [len(piece) for piece in pieces[:-1]] == [SEVEN] * (len(pieces) - 1)
        whole = np.concatenate(pieces) if pieces else np.empty(0, source.dtypes[name])
        assert whole.dtype == source.dtypes[name]
        assert whole.astype(np.float64).tolist() == tensor.flatten().double().tolist()


def test_types_in_files_are_those_of_the_file_and_in_memory_numpys(tmp_path):
    stored = WeightFiles(written(tmp_path, THETA)).dtypes
    assert stored["bf16"] == ml_dtypes.bfloat16
    assert stored["f16"] == np.float16
    assert WeightTensors(THETA).dtypes == stored | {"bf16": np.dtype(np.float32)}


def test_new_files_are_like_the_old_ones_but_for_their_elements(tmp_path):
    names = sorted(THETA)
    cut = {name: f"part-{k // 5}.safetensors" for k, name in enumerate(names)}
    for file in set(cut.values()):
        written(tmp_path / "old", {n: THETA[n] for n in names if cut[n] == file}, file)
    (tmp_path / "old" / INDEX).write_text(json.dumps({"weight_map": cut}))
    for name in ("config.json", SUMS, "stray.safetensors"):
        (tmp_path / "old" / name).write_text(name)
    (tmp_path / "old" / "folder").mkdir()
    (tmp_path / "new").mkdir()
    with NewWeightFiles(tmp_path / "old", tmp_path / "new", {}) as new:
        for name, tensor in THETA.items():
            elements = 2 * plain(tensor).flatten()
            for k in reversed(range(0, len(elements), SEVEN)):  # in any order
                new.write(name, k, elements[k : k + SEVEN])
    kept = {"config.json", INDEX, *cut.values()}
    assert {path.name for path in (tmp_path / "new").iterdir()} == kept
    for file in set(cut.values()):
        old, made = load_file(tmp_path / "old" / file), load_file(tmp_path / "new" / file)
        assert list(made) == list(old)
        for name, tensor in made.items():
            assert tensor.dtype == old[name].dtype
            assert torch.equal(tensor, (2 * old[name]).to(tensor.dtype))
    size = sum(path.stat().st_size for path in (tmp_path / "new").iterdir())
    assert size_of(tmp_path / "old") == size


def test_a_piece_is_rounded_to_the_type_of_the_file(tmp_path):
    folder = written(tmp_path / "old", {"w": torch.zeros(3).bfloat16()})
    (tmp_path / "new").mkdir()
    exact = np.array([1 + 2**-7, 1 + 2**-8 + 2**-20, 1 + 2**-8], np.float32)
    with NewWeightFiles(folder, tmp_path / "new", {}) as new:
        new.write("w", 0, exact)
    stored = load_file(tmp_path / "new" / "model.safetensors")["w"]
    # 1 + 2⁻⁸ lies between two bfloat16 numbers: the even one, 1, is taken.
    assert stored.tolist() == [1 + 2**-7, 1 + 2**-7, 1.0]


# Which files count


def test_without_an_index_the_file_named_model_counts_or_the_only_one(tmp_path):
    one = written(tmp_path / "one", THETA, "adapter.safetensors")
    assert weight_files(one) == [one / "adapter.safetensors"]
    written(one, THETA)
    assert weight_files(one) == [one / "model.safetensors"]


@pytest.mark.parametrize(("count", "said"), [(0, "there is no"), (3, "has 3 .safetensors files")])
def test_files_that_may_or_may_not_belong_together_are_refused(count, said, tmp_path):
    for k in range(count):
        written(tmp_path, THETA, f"part-{k}.safetensors")
    with pytest.raises(MergeError, match=f"^{tmp_path}: {said}"):
        weight_files(tmp_path)


def test_an_index_says_what_counts(tmp_path):
    for file in ("model", "consolidated", "b", "a"):
        written(tmp_path, THETA, f"{file}.safetensors")
    index = {"weight_map": {"f64": "b.safetensors", "f32": "a.safetensors", "f16": "b.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert weight_files(tmp_path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": [1]}',
        '{"weight_map": {"w": 1}}',
        '{"weight_map": {"w": ["a.safetensors"]}}',
        '{"weight_map": {"w": "../model.safetensors"}}',
        '{"weight_map": {"w": "/etc/passwd"}}',
        "\xff",
    ],
)
def test_an_index_of_something_else_is_refused_by_name(index, tmp_path):
    written(tmp_path, THETA)
    (tmp_path / INDEX).write_bytes(index.encode("latin-1"))
    with pytest.raises(MergeError, match=f"^{tmp_path / INDEX}: is no index of files"):
        WeightFiles(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
    written(tmp_path, THETA, "a.safetensors")
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(MergeError, match=r"b\.safetensors: .*No such file"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize(
    "spoil", [lambda b: b"", lambda b: b[:20], lambda b: b[:-1], lambda b: b"x" * 99]
)
def test_a_file_that_is_no_safetensors_file_is_named(spoil, tmp_path):
    path = written(tmp_path, THETA) / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(MergeError, match=rf"^{path}: is damaged, or no safetensors file"):
        WeightFiles(tmp_path)


# What is read side by side


def readers(read, tmp_path, *thetas):
    """θ_init and each θ^m, in memory or in files."""
    if read == "memory":
        return in_memory(thetas[0], thetas[1:])
    folders = [written(tmp_path / str(m), theta) for m, theta in enumerate(thetas)]
    return in_files(folders[0], folders[1:])


each_kind = pytest.mark.parametrize("read", ["memory", "files"])


@each_kind
def test_what_does_not_fit_together_is_named_up_to_five(read, tmp_path):
    start = {f"w{k}": torch.zeros(k + 1) for k in range(7)}
    cases = {
        "other": {f"v{k}": w for k, w in enumerate(start.values())},
        "shape": {name: w[None] for name, w in start.items()},
        "type": {name: w.long() for name, w in start.items()},
    }
    for what, names in (
        ("other", "tensors: v0, v1, v2, v3, v4 and 9 more"),
        ("shape", "shapes: w0, w1, w2, w3, w4 and 2 more"),
        ("type", "types: w0, w1, w2, w3, w4 and 2 more"),
    ):
        with pytest.raises(MergeError, match=rf"^θ\^2 and θ_init have .*different {names}$"):
            readers(read, tmp_path, start, start, cases[what])


@each_kind
def test_pieces_of_all_come_together_whatever_their_float_types(read, tmp_path):
    start = {"w": torch.arange(10).bfloat16()}
    pieces = list(readers(read, tmp_path, start, {"w": torch.arange(10.0)}).pieces("w"))
    assert [[len(piece) for piece in each] for each in pieces] == [[7, 7], [3, 3]]
    assert [piece.tolist() for piece in pieces[-1]] == [[7, 8, 9]] * 2


@each_kind
def test_tied_weights_are_read_once(read, tmp_path):
    def tied(values):
        return {"a": values, "b": torch.arange(3.0), "z": values}

    thetas = [tied(torch.arange(4.0) + m) for m in range(3)]
    if read == "files":  # two of the three are stored under one name
        del thetas[1]["z"], thetas[2]["z"]
    found = readers(read, tmp_path, *thetas)
    assert found.tied == {"z": "a"}
    assert found.names == ["a", "b"]


def test_a_name_that_only_some_have_must_be_a_copy_in_all_that_have_it(tmp_path):
    a, z = torch.arange(4.0), torch.ones(4)
    tied, untied, once = {"a": a, "z": a}, {"a": a, "z": z}, {"a": a}
    for thetas in (
        (once, tied, untied),
        (tied, untied, once),
        (untied, tied, once),
        (once, untied),
        (tied, once, untied),
    ):
        with pytest.raises(MergeError, match=r"different tensors: z$"):
            readers("files", tmp_path, *thetas)


def test_a_copy_of_another_shape_or_type_is_none(tmp_path):
    once = {"a": torch.arange(4.0)}
    for other in (torch.arange(4.0)[None], torch.arange(4.0).double(), torch.arange(3.0)):
        with pytest.raises(MergeError, match=r"different tensors: z$"):
            readers("files", tmp_path, once, once | {"z": other})
