"""The 2:4 file: torch's own layout for sparse tensor cores, exact on any machine, and nothing else is packed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import final, play, tiny
from torch import nn

from lth_scale import cli
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.export import load_semi_structured, read_semi_structured, semi_structured
from lth_scale.export.semi_structured import VALUES, write_semi_structured
from lth_scale.export.sparse import write_sparse
from lth_scale.masks import Mask

GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
COMMAND = "on one: .venv/bin/python -m pytest tests/test_export_semi_structured.py"


def two_of_four(outputs: int, inputs: int) -> torch.Tensor:
    """A mask drawn at random that keeps none, one or two of four consecutive inputs."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(outputs, inputs // 4, 4, generator=generator).argsort(2)
    return (ranks < torch.randint(0, 3, (outputs, inputs // 4, 1), generator=generator)).flatten(1)


def state_of(mask: Mask) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(kept.shape, generator=generator) * kept for name, kept in mask.items()}
    return weights | {"fc.bias": torch.randn(64, generator=generator)}


@pytest.mark.parametrize("values", VALUES)
def test_packed_weights_come_back_exactly(values: str, tmp_path: Path) -> None:
    """At 9/16 of their dense bytes: half of the values, and 2 bits for the place of each."""
    mask = Mask({"fc.weight": two_of_four(64, 128)})
    state, path = state_of(mask), tmp_path / "x"
    size, dense = write_semi_structured(state, mask, path, {"seed": "3"}, values)
    stored, found = load_file(path), read_semi_structured(path)
    assert dense == {} and size == path.stat().st_size
    assert stored.keys() == {"fc.weight/packed", "fc.weight/meta", "fc.bias"}
    packed = sum(stored[f"fc.weight/{part}"].nbytes for part in ("packed", "meta"))
    assert packed == state["fc.weight"].to(VALUES[values]).nbytes * 9 // 16
    assert found.keys() == state.keys() and torch.equal(found["fc.bias"], state["fc.bias"])
    expected = state["fc.weight"].to(VALUES[values]).float()
    assert torch.equal(found["fc.weight"], expected) and not torch.equal(expected, state["fc.weight"])
    assert torch.equal(found["fc.weight"] != 0, mask["fc.weight"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_torch_takes_the_layout(tmp_path: Path) -> None:
    mask = Mask({"fc.weight": two_of_four(32, 64)})
    state = state_of(mask)
    write_semi_structured(state, mask, tmp_path / "x", {}, "fp16")
    stored = load_file(tmp_path / "x")
    parts = [stored["fc.weight/packed"], stored["fc.weight/meta"], None, None, None]
    found = torch.sparse.SparseSemiStructuredTensorCUTLASS(torch.Size((32, 64)), *parts)
    assert torch.equal(found.to_dense(), state["fc.weight"].half())


def test_what_is_not_2_4_stays_dense_and_is_named(tmp_path: Path) -> None:
    """One weight too many would be lost in torch's layout, which the first lines show."""
    broken = two_of_four(32, 64)
    broken[31, 60:] = True
    packed = semi_structured._torchs().sparse_semi_structured_from_dense_cutlass(broken.half())
    assert not torch.equal(semi_structured._torchs().sparse_semi_structured_to_dense_cutlass(*packed), broken.half())
    mask = Mask(
        {
            "fc.weight": two_of_four(64, 64),
            "broken": broken,
            "rows": two_of_four(48, 64),
            "columns": two_of_four(32, 32),
            "conv": two_of_four(32, 64)[:, :, None, None],
        }
    )
    state = state_of(mask)
    _, dense = write_semi_structured(state, mask, tmp_path / "x", {}, "bf16")
    assert dense == {
        "broken": "more than 2 of 4 consecutive inputs kept",
        "rows": "outputs x inputs no multiple of 32 x 64",
        "columns": "outputs x inputs no multiple of 32 x 64",
        "conv": "no weight of a linear layer",
    }
    found = read_semi_structured(tmp_path / "x")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in dense)


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Mask({"fc.weight": two_of_four(32, 64)})
    large = {"fc.weight": mask["fc.weight"] * 1e6}
    whole = Mask.ones({"fc.weight": (32, 64)})
    for state, kept, values, told in (
        (large, mask, "int8", "--values='int8' is not known"),
        (large, mask, "fp16", "--values=fp16 cannot hold the weights of fc.weight; choose bf16"),
        (large, whole, "bf16", r"\(more than 2 of .* kept: fc.weight\); .* under prune.scope=n:m with prune.nm=2:4"),
    ):
        with pytest.raises(UserError, match=told):
            write_semi_structured(state, kept, tmp_path / "x", {}, values)
    monkeypatch.setitem(sys.modules, "torch.sparse._semi_structured_conversions", None)
    monkeypatch.delattr(torch.sparse, "_semi_structured_conversions")
    with pytest.raises(UserError, match=r"torch .* has no torch.sparse._semi_structured_conversions"):
        write_semi_structured(large, mask, tmp_path / "x", {}, "bf16")
    assert not (tmp_path / "x").exists()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    mask = Mask({"fc.weight": two_of_four(32, 64)})
    write_semi_structured(state_of(mask), mask, tmp_path / "x", {}, "fp16")
    whole = (tmp_path / "x").read_bytes()
    for place in (len(whole) - 3, len(whole) // 2, 40):
        (tmp_path / "x").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"is damaged|is not a semi_structured file"):
            read_semi_structured(tmp_path / "x")
    write_sparse(state_of(mask), mask, tmp_path / "x", {}, "fp16")
    with pytest.raises(UserError, match="is not a semi_structured file of version 1; lth ticket export --format semi_"):
        read_semi_structured(tmp_path / "x")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    config = tiny(model={"hidden": (64, 32)}, prune={"rounds": 1, "scope": "n:m", "nm": "2:4"})
    return play(config, tmp_path_factory.mktemp("semi") / "run")


def exported(run: Experiment, out: Path) -> Path:
    assert cli.main(["ticket", "export", str(run.paths.root), "--format=semi_structured", "--out", str(out)]) == 0
    return out


def dense_model(run: Experiment) -> nn.Module:
    """The trained ticket, its packed weights rounded as in the file."""
    model, state = run.model(0).eval(), final(run, "ticket", 1)
    rounded = {name: state.weights[name].half().float() for name in ("fc1.weight", "fc2.weight")}
    model.load_state_dict({**state.weights, **state.buffers, **rounded})
    return model


def test_a_run_s_ticket(run: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_semi_structured(exported(run, tmp_path / "x"))
    said = capsys.readouterr().out
    assert "2 of 3 masked tensors are packed, in fp16" in said
    assert "dense, outputs x inputs no multiple of 32 x 64: output.weight" in said
    expected = dense_model(run).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_without_a_gpu_it_is_told(run: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(run, tmp_path / "x")
    with pytest.raises(UserError, match=r"device='cpu': .* an NVIDIA GPU, .*; read_semi_structured reads the file"):
        load_semi_structured(path, run.model(0), "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=r"2:4 needs compute capability 8.0, this GPU has 7.5"):
        load_semi_structured(path, run.model(0))


def test_only_packed_weights_are_given_to_torch(
    run: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of loading but the GPU's part, which stands in as the identity."""
    given: list[torch.Tensor] = []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda dense: given.append(dense) or dense)
    monkeypatch.setattr(semi_structured, "_missing", lambda device: "")
    model = load_semi_structured(exported(run, tmp_path / "x"), run.model(0), "cpu")
    expected = dense_model(run).half()
    assert [tuple(dense.shape) for dense in given] == [(64, 64), (32, 64)]
    assert all(torch.equal(model.state_dict()[name], held) for name, held in expected.state_dict().items())
    with pytest.raises(UserError, match=r"is not in the state, or of another shape there"):
        load_semi_structured(tmp_path / "x", nn.Linear(3, 3), "cpu")


@pytest.mark.skipif(not GPU, reason=f"needs an NVIDIA GPU of compute capability 8.0; {COMMAND}")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
@torch.inference_mode()
def test_sparse_tensor_cores_compute_the_ticket(run: Experiment, tmp_path: Path) -> None:
    model = load_semi_structured(exported(run, tmp_path / "x"), run.model(0))
    kinds = [isinstance(p, torch.sparse.SparseSemiStructuredTensor) for _, p in sorted(model.named_parameters())]
    assert sum(kinds) == 2
    images = torch.randn(32, *run.description.shape, generator=torch.Generator().manual_seed(1))
    found, expected = model(images.half().cuda()).float().cpu(), dense_model(run)(images)
    assert (found - expected).abs().max() <= 1e-2 * expected.abs().max()
