"""A ticket as one file: what is in it, that it is what the run has, and that a damaged one is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import states
import torch
from commands import DAMAGES, flip
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import RESNET, K, play, result, theta, ticket_mask, tiny

from lth_scale import cli, files, settings, tickets
from lth_scale.checkpoint import Composite, Entry, Source, State
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.tickets import Ticket, find, of_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    config = tiny(model=RESNET, rewind={"at": f"{K}it"}, prune={"rounds": 2}, train={"momentum": 0.9})
    made = play(config, tmp_path_factory.mktemp("tickets") / "run")
    result_of_round_2 = made.paths.round(0, "ticket", 2).result
    result_of_round_2.rename(result_of_round_2.with_suffix(".later"))  # a mask that is not trained yet
    return made


@pytest.fixture
def packed(run: Experiment, tmp_path: Path) -> Path:
    assert cli.main(["ticket", "pack", str(run.paths.root), "--out", str(tmp_path / "t.safetensors")]) == 0
    return tmp_path / "t.safetensors"


def small(seed: int = 0) -> Ticket:
    """Of every dtype, of sizes that fill no byte."""
    whole = states.state(seed)
    generator = torch.Generator().manual_seed(seed)
    mask = Mask({n: torch.rand(whole.weights[n].shape, generator=generator) < 0.5 for n in ("fc.weight", "half")})
    return Ticket(mask, {"theta_k": whole}, "data: {name: digits}\n", {"seed": 3, "words": "ä"})


def same(found: Source, expected: State) -> bool:
    return states.same(found, replace(expected, optimizer={}))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_packed_is_what_is_loaded(tmp_path: Path) -> None:
    made = small()
    assert tickets.pack(made, tmp_path / "t") == (tmp_path / "t").stat().st_size
    found = tickets.load(tmp_path / "t")
    assert found.mask == made.mask and (found.config, found.provenance) == (made.config, made.provenance)
    assert found.states.keys() == {"theta_k"} and same(found.states["theta_k"], states.state())
    assert found.states["theta_k"].step == 7 and found.checksums == made.checksums


def test_equal_tickets_are_equal_bytes(tmp_path: Path) -> None:
    made = small()
    backwards = Mask({name: made.mask[name] for name in reversed(list(made.mask))})
    tickets.pack(made, tmp_path / "one")
    tickets.pack(replace(made, mask=backwards), tmp_path / "two")
    tickets.pack(tickets.load(tmp_path / "one"), tmp_path / "three")
    tickets.pack(small(1), tmp_path / "other")
    one, two, three, other = ((tmp_path / name).read_bytes() for name in ("one", "two", "three", "other"))
    assert one == two == three != other


def test_any_bit_turned_is_refused(tmp_path: Path) -> None:
    tickets.pack(small(), tmp_path / "t")
    size = (tmp_path / "t").stat().st_size
    for at in range(size):
        flip(tmp_path / "t", at)
        with pytest.raises(UserError, match=re.escape(str(tmp_path / "t"))):
            tickets.load(tmp_path / "t")
        flip(tmp_path / "t", at)
    assert size > 1000 and tickets.load(tmp_path / "t").mask == small().mask


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage: str, packed: Path, capsys: Capture) -> None:
    DAMAGES[damage](packed)
    assert cli.main(["ticket", "show", str(packed)]) == 2
    told = capsys.readouterr().err
    assert str(packed) in told and "damaged" in told and len(told.splitlines()) == 1


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "plain", {"a": torch.ones(3)}, {})
    files.save_tensors(tmp_path / "newer", {"a": torch.ones(3)}, {"format": "lth_scale.ticket", "version": "2"})
    with pytest.raises(UserError, match=r"plain is not a ticket file of version 1"):
        tickets.load(tmp_path / "plain")
    with pytest.raises(UserError, match=r"newer is not a ticket file of version 1"):
        tickets.load(tmp_path / "newer")
    with pytest.raises(UserError, match=r"plain is not a mask file"):
        find(str(tmp_path / "plain"))


@dataclass
class Large(Source):
    """One tensor of zeros, made as it is read; the largest read is noted."""

    step: int = 0
    largest: int = 0

    def entries(self) -> dict[str, Entry]:
        return {"weights/fc.weight": Entry((3_000, 1_000), torch.float32)}

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        self.largest = max(self.largest, stop - start)
        return torch.zeros(stop - start)


def test_a_tensor_is_never_held_whole(tmp_path: Path) -> None:
    state = Large()
    made = Ticket(Mask.ones({"fc.weight": (3_000, 1_000)}), {"theta_k": state})
    assert tickets.pack(made, tmp_path / "t") > 12_000_000
    assert 0 < 4 * state.largest <= files.CHUNK


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    class Broken(Large):
        reads = 0

        def read(self, key: str, start: int, stop: int) -> torch.Tensor:
            self.reads += 1
            if self.reads > 4:  # in the middle of the second pass, which writes
                raise UserError("gone")
            return super().read(key, start, stop)

    with pytest.raises(UserError, match="gone"):
        tickets.pack(Ticket(Mask.ones({"fc.weight": (3_000, 1_000)}), {"theta_k": Broken()}), tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


# --- of a run folder --------------------------------------------------------------------------------------------------


def test_a_packed_run_is_its_mask_theta_k_config_and_history(run: Experiment, packed: Path) -> None:
    found, at_k = tickets.load(packed), theta(run, K)
    assert found.mask == ticket_mask(run, 1) and found.mask.sha256() == result(run, "ticket", 1)["hashes"]["mask"]
    assert same(found.states["theta_k"], at_k) and at_k.optimizer and at_k.buffers
    assert found.checksums["theta_k"] == Composite(at_k, at_k, None, K).digest()
    about = found.provenance
    assert (about["seed"], about["round"], about["k"]) == (0, 1, K)
    assert about["theta_k_of_run"] == at_k.digest() == result(run, "ticket", 1)["source"]["theta_k"]
    accuracy = [result(run, "ticket", number)["end"]["test"]["accuracy"] for number in (0, 1)]
    assert [about["accuracy"]["dense"], about["accuracy"]["ticket"]] == accuracy
    (packed.parent / "config.yaml").write_text(found.config)
    assert settings.load(packed.parent / "config.yaml") == run.config


def test_any_program_reads_it(run: Experiment, packed: Path) -> None:
    found = load_file(str(packed))
    weights = {name.split("/", 2)[2]: tensor for name, tensor in found.items() if name.startswith("theta_k/")}
    run.model(3).load_state_dict(weights)  # strict
    bits = load_file(str(run.paths.round(0, "ticket", 1).mask))
    assert {name.removeprefix("mask/") for name in found if name.startswith("mask/")} == bits.keys()
    assert all(torch.equal(found[f"mask/{name}"], tensor) for name, tensor in bits.items())
    with safe_open(packed, "pt") as stream:
        assert stream.metadata()["config"] == run.paths.config.read_text()


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_that_ranks_wrote_in_parts_is_the_same_file(
    ranks: int, run: Experiment, packed: Path, tmp_path: Path
) -> None:
    at_k, copy = theta(run, K), tmp_path / "run"
    shutil.copytree(run.paths.root, copy)
    shutil.rmtree(rewind := copy / run.paths.rewind(0, K).relative_to(run.paths.root))
    states.write(rewind, at_k, states.even(at_k, ranks))
    tickets.pack(of_run(copy, None, None), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()


def test_rounds_are_chosen(run: Experiment) -> None:
    assert find(f"{run.paths.root}:round=0").mask == Mask.ones({p.name: p.shape for p in run.prunable})
    untrained = find(f"{run.paths.root}:seed=0,round=2")
    assert untrained.mask == ticket_mask(run, 2) and untrained.provenance["accuracy"]["ticket"] is None
    assert find(str(run.paths.round(0, "ticket", 1).mask)).mask == ticket_mask(run, 1)


def test_a_damaged_run_is_refused_and_leaves_no_file(run: Experiment, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.paths.root, copy)
    flip(copy / "seed_0/rewind" / f"step_{K:08d}" / "rank_00000.safetensors")
    assert cli.main(["ticket", "pack", str(copy), "--out", str(tmp_path / "t")]) == 2
    assert "rank_00000.safetensors is damaged" in capsys.readouterr().err and not (tmp_path / "t").exists()


def test_a_mask_that_the_result_does_not_name_is_refused(run: Experiment, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.paths.root, copy)
    shutil.copy(copy / "seed_0/ticket/round_02/mask.safetensors", copy / "seed_0/ticket/round_01/mask.safetensors")
    assert cli.main(["ticket", "pack", str(copy), "--out", str(tmp_path / "t")]) == 2
    assert "is not the mask that" in capsys.readouterr().err and not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("seed_0/ticket/round_01/result.json", "{}", "it lacks hashes.mask"),
        ("seed_0/ticket/round_00/result.json", '{"hashes": {"mask": ""}, "source": 3}', "it lacks source.theta_k"),
        ("seed_0/ticket/round_00/result.json", "[", "is damaged"),
        ("provenance.json", "[]", "it lacks data"),
    ],
)
def test_a_damaged_history_is_named(
    file: str, content: str, told: str, run: Experiment, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(run.paths.root, tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    assert cli.main(["ticket", "pack", str(tmp_path / "run"), "--out", str(tmp_path / "t")]) == 2
    line = capsys.readouterr().err
    assert str(tmp_path / "run" / file) in line and told in line and not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pack"], "lth ticket pack RUN --out FILE"),
        (["pack", "RUN"], "lth ticket pack RUN --out FILE"),
        (["pack", "nowhere", "--out", "x"], "nowhere is not a run folder"),
        (["pack", "RUN", "--out", "x", "--round", "7"], "round 7 is not done; done are: 0, 1"),
        (["pack", "RUN", "--out", "x", "--seed", "4"], "done are: none"),
        (["show"], "lth ticket show FILE"),
        (["show", "nowhere"], "nowhere does not exist"),
        (["show", "RUN:round=one"], "RUN:seed=0,round=3"),
        (["show", "RUN:arm=2"], "RUN:seed=0,round=3"),
        (["show", "nowhere:round=2"], "nowhere is no run folder"),
        (["diff", "RUN"], "two tickets"),
        (["mend"], "'mend' is not known"),
        ([], "choose from: bench, diff, export, import, pack, show"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words: list[str], told: str, run: Experiment, capsys: Capture) -> None:
    assert cli.main(["ticket", *(word.replace("RUN", str(run.paths.root)) for word in words)]) == 2
    line = capsys.readouterr().err
    assert told in line and len(line.splitlines()) == 1 and not Path("x").exists()


# --- looking at it ----------------------------------------------------------------------------------------------------


def test_show_says_the_same_of_run_and_file(run: Experiment, packed: Path, capsys: Capture) -> None:
    told = []
    for place in (packed, run.paths.root):
        capsys.readouterr()
        assert cli.main(["ticket", "show", str(place), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    mask = ticket_mask(run, 1)
    assert {n: (v["kept"], v["numel"]) for n, v in told[0]["layers"].items()} == mask.counts()
    assert told[0]["overall"]["density"] == mask.density
    assert told[0]["config"]["model"]["name"] == "resnet8"


def test_show_is_a_table(packed: Path, run: Experiment, capsys: Capture) -> None:
    capsys.readouterr()
    assert cli.main(["ticket", "show", str(packed)]) == 0
    said = capsys.readouterr().out
    kept, numel = ticket_mask(run, 1).kept, ticket_mask(run, 1).numel
    for part in (
        f"{kept:,}",
        f"{numel:,}",
        "seed 0, round 1, k 7",
        "data digits, model resnet8",
        "test accuracy: dense",
    ):
        assert part in said, part
    assert f"checksums hold: mask {ticket_mask(run, 1).sha256()[:12]}, theta_k " in said
