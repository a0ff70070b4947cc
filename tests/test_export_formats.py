"""Exports compute what the ticket computes: packed values come back, programs run in runtimes that are not ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors import safe_open
from tiny_runs import ONCE, RESNET, final, play, tiny
from torch import nn

from lth_scale import cli
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.export import load_sparse, programs, read_sparse
from lth_scale.export.network import Network
from lth_scale.export.sparse import VALUES, write_sparse
from lth_scale.masks import Mask

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=["lenet", "resnet"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    changes = {"model": RESNET, "train": ONCE} if request.param == "resnet" else {}
    config = tiny(**changes, prune={"rounds": 1, "rate": 0.97})
    return play(config, tmp_path_factory.mktemp("formats") / request.param)


def export(run: Experiment | Path, out: Path, *words: str) -> Path:
    place = run if isinstance(run, Path) else run.paths.root
    assert cli.main(["ticket", "export", str(place), "--out", str(out), *words]) == 0
    return out


def trained(run: Experiment) -> nn.Module:
    """The network at the end of round 1, its mask applied."""
    model, state = run.model(0).eval(), final(run, "ticket", 1)
    model.load_state_dict({**state.weights, **state.buffers})
    return model


def images(run: Experiment, count: int) -> torch.Tensor:
    return torch.randn(count, *run.description.shape, generator=torch.Generator().manual_seed(1))


def random_state(density: float) -> tuple[dict[str, torch.Tensor], Mask]:
    generator = torch.Generator().manual_seed(0)
    drawn = {"fc.weight": torch.randn(300, 400, generator=generator), "bias": torch.randn(300, generator=generator)}
    kept = torch.rand(300, 400, generator=generator) < density
    return {**drawn, "fc.weight": drawn["fc.weight"] * kept}, Mask({"fc.weight": kept})


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("density", [0.0, 0.036, 0.1, 0.5, 1.0])
def test_a_sparse_file_gives_back_what_was_packed(density: float, values: str, tmp_path: Path) -> None:
    """At most one bit a weight for the mask, plus the surviving values; exact zeros elsewhere."""
    state, mask = random_state(density)
    size = write_sparse(state, mask, tmp_path / "x", {"seed": "3"}, values)
    bits = 120_000 + 8 * VALUES[values].itemsize * mask.kept + 32 * 300 * (2 if values == "int8" else 1)
    assert size == (tmp_path / "x").stat().st_size <= bits / 8 + 1500
    found = read_sparse(tmp_path / "x")
    assert found.keys() == state.keys() and torch.equal(found["bias"], state["bias"])
    assert torch.equal(found["fc.weight"] != 0, mask["fc.weight"]) or values == "int8"
    assert bool((found["fc.weight"][~mask["fc.weight"]] == 0).all())
    error = (found["fc.weight"] - state["fc.weight"]).abs()
    rows = state["fc.weight"].abs().amax(1, keepdim=True)
    bound = {"fp32": 0 * rows, "fp16": rows / 2**10, "bf16": rows / 2**7, "int8": rows / 127 / 2 * 1.001}[values]
    assert bool((error <= bound).all())


def test_eight_times_smaller_at_a_tenth(tmp_path: Path) -> None:
    state, mask = random_state(0.1)
    dense = 4 * sum(tensor.numel() for tensor in state.values())
    sizes = {values: dense / write_sparse(state, mask, tmp_path / "x", {}, values) for values in VALUES}
    assert sizes["fp32"] > 8 and sizes["fp16"] > 14 and sizes["int8"] > 20


def test_a_run_s_ticket_in_a_sparse_file(run: Experiment, tmp_path: Path) -> None:
    out, state = export(run, tmp_path / "x", "--format=sparse"), final(run, "ticket", 1)
    found, expected = read_sparse(out), {**state.weights, **state.buffers}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    with safe_open(out, "pt") as held:
        assert held.metadata()["round"] == "1" and held.metadata()["values"] == "fp32"


def test_a_damaged_sparse_file_is_refused(tmp_path: Path) -> None:
    state, mask = random_state(0.1)
    write_sparse(state, mask, tmp_path / "x", {}, "fp32")
    whole = (tmp_path / "x").read_bytes()
    for place in (len(whole) - 3, len(whole) // 2, 40):
        (tmp_path / "x").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"is damaged|is not a sparse file"):
            read_sparse(tmp_path / "x")
    (tmp_path / "x").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="is damaged"):
        read_sparse(tmp_path / "x")


def test_what_fp16_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--values=fp16 cannot hold the weights of w; choose bf16"):
        write_sparse({"w": torch.full((2, 2), 1e6)}, Mask.ones({"w": (2, 2)}), tmp_path / "x", {}, "fp16")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_three_runtimes_compute_the_ticket(whole: bool, run: Experiment, tmp_path: Path) -> None:
    out = export(run, tmp_path / "ticket.onnx", "--format=onnx", *(["--whole"] if whole else []))
    onnx.checker.check_model(str(out), full_check=True)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    reference = ReferenceEvaluator(str(out))
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else bf16, on processors that have it
    compiled = openvino.Core().compile_model(str(out), "CPU", exact)
    for count in (1, 5):
        given = {"images": images(run, count).numpy()}
        with torch.no_grad():
            expected = trained(run)(images(run, count)).numpy()
        for name, found in (
            ("onnxruntime", session.run(None, given)[0]),
            ("openvino", compiled(given)["logits"]),
            ("reference", reference.run(None, given)[0]),
        ):
            assert np.abs(found - expected).max() < 1e-4, name


@pytest.mark.slow
def test_units_without_weights_are_not_exported(
    run: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = export(run, tmp_path / "small.onnx", "--format=onnx").stat().st_size
    said = capsys.readouterr().out
    whole = export(run, tmp_path / "whole.onnx", "--format=onnx", "--whole").stat().st_size
    assert " hidden units are left" in said and small < whole


def bare(folder: Path, code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that has its standard library, onnxruntime and numpy, and in a folder of its own."""
    (folder / "packages").mkdir(exist_ok=True)
    for module in (np, onnxruntime):
        source = Path(module.__file__).parent
        for part in source.parent.glob(f"{source.name}*"):  # numpy.libs too
            if not (link := folder / "packages" / part.name).exists():
                link.symlink_to(part)
    code = f"import sys; sys.path.append({str(folder / 'packages')!r}); {code}"
    command = [sys.executable, "-I", "-S", "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_example_needs_nothing_of_ours(run: Experiment, tmp_path: Path) -> None:
    out = export(run, tmp_path / "ticket.onnx", "--format=onnx")
    np.save(tmp_path / "images.npy", images(run, 4).numpy())
    script = ROOT / "examples" / "onnx_inference.py"
    assert len(script.read_text().splitlines()) <= 20
    for absent in ("lth_scale", "torch", "onnx"):
        assert f"No module named '{absent}'" in bare(tmp_path, f"import {absent}").stderr
    run_it = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    told = bare(tmp_path, run_it, script, out, tmp_path / "images.npy")
    assert told.returncode == 0, told.stderr
    with torch.no_grad():
        expected = trained(run)(images(run, 4)).argmax(1).tolist()
    assert [int(word) for word in told.stdout.split()] == expected


@pytest.mark.slow
def test_torch_loads_the_program(run: Experiment, tmp_path: Path) -> None:
    out = export(run, tmp_path / "ticket.pt2", "--format=torch.export")
    program = torch.export.load(out).module()
    with torch.no_grad():
        assert torch.allclose(program(images(run, 3)), trained(run)(images(run, 3)), atol=1e-5)


def test_a_program_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    one, other = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="outputs differ by"):
        programs.write_torch_export(Network(one, (1, 2, 2), other, ""), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_a_format_needs_is_told(
    run: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(run.paths.round(0, "ticket", 1).checkpoints)
    folder = next(path for path in Path(checkpoint).iterdir() if path.is_dir())
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxruntime" else object())
    for words, told in (
        ([str(run.paths.root), "--format=onyx"], "--format='onyx' is not known (did you mean 'onnx'?)"),
        ([str(run.paths.root), "--format=sparse", "--values=int4"], "--values='int4' is not known"),
        ([str(run.paths.root), "--format=sparse", "--round=0"], "--format=sparse needs a mask"),
        ([str(folder), "--format=torch.export"], "needs a run folder, or a ticket"),
        ([str(run.paths.root), "--format=onnx"], "--format=onnx needs onnxruntime: pip install 'lth_scale[export]'"),
    ):
        assert cli.main(["ticket", "export", *words, "--out", str(tmp_path / "x")]) == 2
        line = capsys.readouterr().err
        assert told in line and len(line.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_a_ticket_file_is_exported_where_it_starts(run: Experiment, tmp_path: Path) -> None:
    ticket = tmp_path / "ticket.safetensors"
    assert cli.main(["ticket", "pack", str(run.paths.root), "--out", str(ticket)]) == 0
    start = read_sparse(export(ticket, tmp_path / "sparse", "--format=sparse"))
    expected = read_sparse(export(run, tmp_path / "theta", "--format=sparse", "--theta"))
    assert all(torch.equal(start[name], expected[name]) for name in start | expected)


# the sparse file as a program


@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_a_sparse_file_runs_without_its_run(run: Experiment, values: str, tmp_path: Path) -> None:
    """The network is built from what the file tells; the control is the network with other weights."""
    path = export(run, tmp_path / "x", "--format", "sparse", "--values", values)
    model = run.model(0).eval()
    model.load_state_dict(read_sparse(path), strict=False)
    execute = load_sparse(path)
    for count in (1, 20):
        given = images(run, count)
        with torch.no_grad():
            expected, others = model(given).numpy(), run.model(0).eval()(given).numpy()
        np.testing.assert_allclose(execute(given.numpy()), expected, rtol=1e-4, atol=1e-4)
        assert abs(others - expected).max() > 0.01


def test_a_sparse_file_that_does_not_tell_its_network_is_refused(tmp_path: Path) -> None:
    state, mask = random_state(0.1)
    write_sparse(state, mask, tmp_path / "x", {}, "fp32")
    with pytest.raises(UserError, match=r"does not tell its network \(config, shape, classes missing\)"):
        load_sparse(tmp_path / "x")
