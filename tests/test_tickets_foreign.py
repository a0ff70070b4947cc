"""Masks of OpenLTH and of torch.nn.utils.prune: equal tensors in and out, and nothing executed."""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import RESNET, tiny
from torch import nn
from torch.nn.utils import prune

from lth_scale import cli, models, settings, tickets
from lth_scale.errors import UserError
from lth_scale.tickets import Ticket, find, paired

LENET = ["digits_lenet", "--model.hidden=[20,10]"]
NAMES = {"fc_layers.0.weight": "fc1.weight", "fc_layers.1.weight": "fc2.weight", "fc.weight": "output.weight"}
SHAPES = {"fc_layers.0.weight": (20, 64), "fc_layers.1.weight": (10, 20), "fc.weight": (10, 10)}


def openlth(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """As Mask.save of OpenLTH has it: int32 tensors in a plain dict."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: (values < 0.3).int() for name, values in drawn.items()} | changes


class Mlp(nn.Module):
    """Another program's LeNet."""

    def __init__(self, inputs: int = 64) -> None:
        super().__init__()
        self.fc_layers = nn.ModuleList([nn.Linear(inputs, 20), nn.Linear(20, 10)])
        self.fc = nn.Linear(10, 10)


def imported(held: Any, kind: str, folder: Path, *model: str) -> Ticket:
    torch.save(held, folder / "held.pt")
    words = [str(folder / "held.pt"), "--format", kind, "--out", str(folder / "ticket")]
    assert cli.main(["ticket", "import", *words, *(["--model", *model] if model else [])]) == 0
    return tickets.load(folder / "ticket")


def refused(held: Any, kind: str, folder: Path, capsys: pytest.CaptureFixture[str], *model: str) -> str:
    torch.save(held, folder / "held.pt")
    words = [str(folder / "held.pt"), "--format", kind, "--out", str(folder / "ticket")]
    assert cli.main(["ticket", "import", *words, *(["--model", *model] if model else [])]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and not (folder / "ticket").exists()
    return told


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert list(found) == list(expected) or found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


# --- OpenLTH ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool, torch.float16])
def test_an_openlth_mask_is_equal_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    held = {name: kept.to(dtype) for name, kept in openlth().items()}
    found = imported(held, "openlth", tmp_path)
    assert_equal(found.mask, {name: kept.bool() for name, kept in openlth().items()})
    assert not found.states and found.config == "" and found.provenance["from"] == "openlth"


def test_openlth_names_become_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = imported(openlth(), "openlth", tmp_path, *LENET)
    assert_equal(found.mask, {NAMES[name]: kept.bool() for name, kept in openlth().items()})
    assert found.provenance["names"] == NAMES and found.sections["model"]["hidden"] == [20, 10]
    assert "fc_layers.1.weight -> fc2.weight" in capsys.readouterr().out
    shape = models.prunable(models.build(settings.parse(LENET).model, (1, 8, 8), 10, 0))
    found.mask.check_model({p.name: p.shape for p in shape})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fc_layers.0.weight": torch.ones(20, 65)}, r"are fc_layers.0.weight 20x65 in the file, fc1.weight 20x64 in"),
        ({"fc_layers.0.weight": torch.ones(64, 20)}, r"are fc_layers.0.weight 64x20 in the file, fc1.weight 20x64 in"),
        ({"fc9.weight": torch.ones(3, 3)}, r"are fc9.weight 3x3 in the file, none in the model"),
        ({"fc1.weight": torch.ones(3, 3)}, r"fc1.weight has shape \(3, 3\) in the file and \(20, 64\) in the model"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    changes: dict[str, torch.Tensor], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(told, refused(openlth(**changes), "openlth", tmp_path, capsys, *LENET))
    imported(openlth(**changes), "openlth", tmp_path)  # without a model any names will do


def test_too_few_tensors_are_refused_naming_both_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = openlth()
    del held["fc_layers.1.weight"]
    told = refused(held, "openlth", tmp_path, capsys, *LENET)
    assert "left over are none in the file, fc2.weight 10x20 in the model" in told


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, float("nan")])
def test_what_is_not_0_or_1_is_no_mask(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = openlth(**{"fc.weight": torch.ones(10, 10)})
    held["fc.weight"][3, 4] = value
    assert "fc.weight is not a mask" in refused(held, "openlth", tmp_path, capsys)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ([torch.ones(3)], "holds a list"),
        ({}, "holds a dict"),
        ({"fc.weight": [0, 1]}, "'fc.weight' is a list"),
        ({3: torch.ones(3)}, "3 is a tensor of torch.float32, not a named tensor"),
        ({"": torch.ones(3)}, "not a named tensor"),
        ({"a": torch.ones(3).to_sparse()}, "'a' is a tensor"),
        ({"a": torch.ones(3, device="meta")}, "'a' is a tensor"),
        ({"a": torch.ones(3, dtype=torch.complex128)}, "'a' is a tensor of torch.complex128"),
    ],
)
def test_a_file_of_anything_else_is_refused(
    held: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(held, "openlth", tmp_path, capsys)


# --- torch.nn.utils.prune ---------------------------------------------------------------------------------------------


def test_a_pruned_torch_model_is_equal_tensors(tmp_path: Path) -> None:
    model = Mlp()
    prune.l1_unstructured(model.fc_layers[0], "weight", 0.7)
    prune.random_unstructured(model.fc, "bias", 0.5)
    held = model.state_dict()
    found = imported(held, "torch", tmp_path)
    names = ("fc_layers.0.weight", "fc.bias")
    assert_equal(found.mask, {name: held[f"{name}_mask"].bool() for name in names})
    weights = {n.removesuffix("_orig"): t for n, t in held.items() if not n.endswith("_mask")}
    assert found.states.keys() == {"theta_T"}  # what is in such a file was trained
    assert_equal(found.states["theta_T"].whole().weights, weights)
    for name in names:
        applied = found.states["theta_T"].masked(found.mask).whole().weights[name]
        assert torch.equal(applied, model.get_parameter(f"{name}_orig") * held[f"{name}_mask"])
        assert not torch.equal(applied, weights[name])  # what is under the mask is kept as it was


def test_a_layer_without_a_mask_is_kept_whole_and_names_become_the_models(tmp_path: Path) -> None:
    model = Mlp()
    prune.l1_unstructured(model.fc_layers[0], "weight", 0.7)
    found, held = imported(model.state_dict(), "torch", tmp_path, *LENET), model.state_dict()
    ones = {"fc2.weight": torch.ones(10, 20), "output.weight": torch.ones(10, 10)}
    whole = {"fc1.weight": held["fc_layers.0.weight_mask"], **ones}
    assert_equal(found.mask, {name: kept.bool() for name, kept in whole.items()})
    weights = found.states["theta_T"].whole().weights
    assert torch.equal(weights["fc1.weight"], held["fc_layers.0.weight_orig"])
    assert torch.equal(weights["output.bias"], held["fc.bias"]) and len(weights) == 6


def test_buffers_are_told_by_the_model(tmp_path: Path) -> None:
    config = tiny(model=RESNET)
    model = models.build(config.model, (1, 8, 8), 10, 0)
    for one in models.prunable(model):
        prune.random_unstructured(model.get_submodule(one.name.removesuffix(".weight")), "weight", 0.5)
    (tmp_path / "c.yaml").write_text(settings.dump(config))
    found, held = imported(model.state_dict(), "torch", tmp_path, str(tmp_path / "c.yaml")), model.state_dict()
    state = found.states["theta_T"].whole()
    clean = models.build(config.model, (1, 8, 8), 10, 0)
    assert state.weights.keys() == dict(clean.named_parameters()).keys()
    assert_equal(state.buffers, {name: held[name] for name, _ in clean.named_buffers()})
    clean.load_state_dict(state.weights | state.buffers)  # strict
    assert_equal(found.mask, {n.removesuffix("_mask"): t.bool() for n, t in held.items() if n.endswith("_mask")})


def bad_torch(change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, torch.Tensor]:
    model = Mlp()
    prune.l1_unstructured(model.fc, "weight", 0.7)
    held = dict(model.state_dict())
    change(held)
    return held


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda held: held.pop("fc.weight_mask"), "fc.weight_orig, but no fc.weight_mask"),
        (lambda held: held.pop("fc.weight_orig"), "holds no NAME_orig beside NAME_mask"),
        (lambda held: held.update({"fc.weight_mask": torch.ones(10)}), r"fc.weight_mask has shape \(10,\), and fc.we"),
        (lambda held: held.update({"fc.weight_mask": 3 * torch.ones(10, 10)}), "fc.weight_mask is not a mask"),
        (lambda held: held.update({"fc.weight": torch.ones(10, 10)}), "holds fc.weight twice"),
    ],
)
def test_a_torch_file_that_makes_no_sense_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert re.search(told, refused(bad_torch(change), "torch", tmp_path, capsys))


def test_a_masked_tensor_that_the_model_does_not_prune_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Mlp()
    prune.random_unstructured(model.fc, "bias", 0.5)
    assert "output.bias is masked in the file" in refused(model.state_dict(), "torch", tmp_path, capsys, *LENET)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_pair_by_name_then_by_kind_in_order() -> None:
    theirs = {"b.weight": (3, 3), "a.weight": (3, 3), "same.weight": (3, 3), "b.bias": (3,), "n.weight": (3,)}
    ours = {"same.weight": (3, 3), "n1.weight": (3,), "l1.weight": (3, 3), "l2.weight": (3, 3), "l1.bias": (3,)}
    found = {"b.weight": "l1.weight", "a.weight": "l2.weight", "same.weight": "same.weight"}
    assert paired(theirs, ours) == found | {"b.bias": "l1.bias", "n.weight": "n1.weight"}


def test_pairing_does_not_depend_on_the_order_of_kinds() -> None:
    ours = {f"our{i}.weight": (i, 2) for i in range(1, 4)}
    theirs = {f"their{i}.weight": (i, 2) for i in range(1, 4)}
    for order in itertools.permutations(theirs):
        assert paired({name: theirs[name] for name in order}, ours) == {n: n.replace("their", "our") for n in order}


# --- hostile files ----------------------------------------------------------------------------------------------------


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("kind", tickets.READERS)
def test_a_hostile_pickle_is_refused_and_not_executed(
    how: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, path = openlth() | {"evil": Hostile(tmp_path / "executed")}, tmp_path / "mask.pth"
    torch.save(held, path) if how == "torch" else path.write_bytes(pickle.dumps(held))
    words = ["ticket", "import", str(path), "--format", kind, "--out", str(tmp_path / "t")]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert str(path) in told and "more than tensors" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "executed").exists() and not (tmp_path / "t").exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert (tmp_path / "executed").exists()  # it was armed


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mask.pth").write_bytes(content)
    words = ["ticket", "import", str(tmp_path / "mask.pth"), "--format", "openlth", "--out", str(tmp_path / "t")]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "mask.pth is not read" in told and len(told.splitlines()) == 1


def test_a_ticket_is_not_what_torch_saved(tmp_path: Path) -> None:
    torch.save(openlth(), tmp_path / "mask.pth")
    with pytest.raises(UserError, match="no safetensors file"):
        find(str(tmp_path / "mask.pth"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "lth ticket import mask.pth"),
        (["here", "--format", "openlth"], "lth ticket import mask.pth"),
        (["here", "--format", "openlth", "--out", "x", "--model.hidden=[3]"], "lth ticket import mask.pth"),
        (["here", "--out", "x"], "--format=None is not known; choose from: openlth, torch"),
        (["here", "--format", "keras", "--out", "x"], "choose from: openlth, torch"),
        (["nowhere", "--format", "torch", "--out", "x"], "nowhere does not exist"),
    ],
)
def test_incomplete_commands_say_what_is_missing(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ticket", "import", *words]) == 2
    line = capsys.readouterr().err
    assert told in line and len(line.splitlines()) == 1
