"""How alike masks are, in reports: exact counts, what chance gives, signs; and what blocks of a transformer keep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import synthetic
import torch

from lth_scale import files
from lth_scale.checkpoint import State, save_state
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.report import matrices, overlaps, several
from lth_scale.report.layers import blocks
from lth_scale.report.overlaps import ALL, between, within
from lth_scale.report.reading import RunResults, read_run, read_runs
from lth_scale.report.study import Study

SMALL = synthetic.config(rounds=2, seeds=range(2), arms=("ticket",))
NAME = "output.weight"  # 10 x 100


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "run", SMALL)


def keep(root: Path, seed: int, number: int, chosen: slice) -> None:
    """A round's mask that keeps these places of the output layer, and all of the others."""
    mask = {n: torch.ones(s, dtype=torch.bool) for n, s in synthetic.TENSORS.items()}
    mask[NAME] = torch.zeros(1000, dtype=torch.bool)
    mask[NAME][chosen] = True
    mask[NAME] = mask[NAME].reshape(10, 100)
    paths = RunPaths(root).round(seed, "ticket", number)
    made = Mask(mask)
    made.save(paths.mask)
    tensors = {n: {"kept": k, "numel": m, "kind": "fc"} for n, (k, m) in made.counts().items()}
    files.write_json(paths.result, files.read_json(paths.result) | {"tensors": tensors, "density": made.density})


def put_theta(root: Path, seed: int, weights: torch.Tensor) -> None:
    """theta_k, and its negative at the end of round 2."""
    state = {n: torch.ones(s) for n, s in synthetic.TENSORS.items()} | {NAME: weights.reshape(10, 100)}
    end = RunPaths(root).round(seed, "ticket", 2).checkpoints / f"step_{synthetic.STEPS:08d}.attempt_1"
    for place, sign in ((RunPaths(root).rewind(seed, 0), 1), (end, -1 if seed else 1)):
        shutil.rmtree(place, ignore_errors=True)
        save_state(place, State({n: sign * w for n, w in state.items()}, step=0 if "rewind" in str(place) else 600))


def row(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    (found,) = (r for _, r in frame.iterrows())
    return found


def test_overlaps_of_replicates_are_exact_counts(run: Path) -> None:
    keep(run, 0, 2, slice(0, 400))
    keep(run, 1, 2, slice(300, 800))
    found = row(within(read_run(run)), kind="replicates", round=2, tensor=NAME)
    assert tuple(found[["numel", "kept", "other_kept", "common"]]) == (1000, 400, 500, 100)
    assert found["jaccard"] == 100 / 800
    assert found["chance"] == 200 / 700  # 400 * 500 / 1000 in common
    whole = row(within(read_run(run)), kind="replicates", round=2, tensor=ALL)
    rest = 300 * 64 + 100 * 300
    assert whole["jaccard"] == (rest + 100) / (rest + 800) and whole["common"] == rest + 100


def test_signs_are_compared_where_both_keep(run: Path) -> None:
    """60 of the 100 common survivors have equal signs in theta_k; the second replicate ends with all of them turned."""
    for seed in (0, 1):
        for number in (1, 2):
            keep(run, seed, number, slice(0, 400) if seed == 0 else slice(300, 800))
    first = torch.ones(1000)
    second = torch.full((1000,), -1.0)
    second[300:360] = 1.0
    put_theta(run, 0, first)
    put_theta(run, 1, second)
    frame = within(read_run(run))
    found = row(frame, kind="replicates", round=2, tensor=NAME)
    assert (found["signs_theta_k"], found["signs_theta_T"]) == (0.6, 0.4)
    everywhere = float((first == second).float().mean())
    assert everywhere != 0.6, "the control: over all weights it is another number"
    assert frame[frame["round"] == 1]["signs_theta_k"].isna().all()  # the last round only


def test_nested_rounds_are_not_listed_and_others_are(run: Path) -> None:
    for number, chosen in ((1, slice(0, 600)), (2, slice(0, 400))):
        keep(run, 0, number, chosen)
    assert (within(read_run(run))["kind"] != "rounds").all()
    keep(run, 0, 2, slice(400, 800))
    found = row(within(read_run(run)), kind="rounds", tensor=NAME)
    assert (found["round"], found["other_round"], found["jaccard"]) == (1, 2, 200 / 800)


def test_runs_are_compared_at_equal_density_on_what_they_share(run: Path, tmp_path: Path) -> None:
    """The other run prunes no output layer and reaches the first one's second density in its first round."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for seed in (0, 1):
        path = RunPaths(other).round(seed, "ticket", 1)
        mask = Mask.load(RunPaths(run).round(seed, "ticket", 2).mask)
        part = Mask({name: kept for name, kept in mask.items() if name != NAME})
        part.save(path.mask)
        tensors = {n: {"kept": k, "numel": m, "kind": "fc"} for n, (k, m) in part.counts().items()}
        files.write_json(path.result, files.read_json(path.result) | {"tensors": tensors})
        RunPaths(other).round(seed, "ticket", 2).mask.unlink()
    frame = between(read_runs([run, other]))
    assert set(zip(frame["round"], frame["other_round"], strict=True)) == {(2, 1)}
    assert set(frame["tensor"]) == {ALL, "fc1.weight", "fc2.weight"} and set(frame["replicate"]) == {0, 1}
    assert (frame["jaccard"] == 1).all() and (frame["chance"] < 0.7).all()
    assert (frame["kind"] == "runs").all()


def test_runs_of_other_networks_have_nothing_in_common(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert len(between(read_runs([run, other]))), "the control: of equal networks there are rows"
    for path in RunPaths(other).results():
        told = files.read_json(path)
        files.write_json(path, told | {"tensors": {f"other.{n}": t for n, t in told["tensors"].items()}})
    assert between(read_runs([run, other])).empty


def test_work_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = synthetic.write_run(tmp_path / "run", synthetic.config(rounds=9, seeds=range(5), arms=("ticket",)))
    read: list[Path] = []
    load = Mask.load
    monkeypatch.setattr(Mask, "load", lambda path: read.append(path) or load(path))
    frame = within(read_run(root))
    assert overlaps.shown_rounds(read_run(root)) == [1, 3, 4, 6, 7, 9]
    assert set(frame["replicate"]) | set(frame["other_replicate"]) == {0, 1, 2}
    assert set(frame["round"]) == {1, 3, 4, 6, 7, 9} and len(frame) == 6 * 3 * (1 + len(synthetic.TENSORS))
    assert len(read) == 6 * 3 + 6


def test_masks_that_are_gone_are_a_sentence(run: Path) -> None:
    titles = [(grid.title, bool(grid.rows)) for grid in several.own_grids(Study.whole(read_run(run)))]
    assert titles == [("How alike the masks are", True), ("How alike the masks are, by layer", True)]
    for path in run.glob("seed_*/ticket/round_*/mask.safetensors"):
        path.unlink()
    (grid,) = several.own_grids(Study.whole(read_run(run)))
    assert grid.note == matrices.GONE and not grid.rows
    assert "masks" not in several.tables([Study.whole(read_run(run))], several.Compared())


def test_a_damaged_mask_is_named(run: Path) -> None:
    path = RunPaths(run).round(1, "ticket", 1).mask
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        within(read_run(run))


def test_the_table_shows_means_and_ranges(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "run", synthetic.config(rounds=2, seeds=range(3), arms=("ticket",)))
    frame = within(read_run(root))
    by_round, by_layer = matrices.overlaps(frame, "replicates", "title", "note")
    mine = frame[(frame["tensor"] == ALL) & (frame["round"] == 2)]["jaccard"]
    cell = by_round.rows[1][2]
    assert cell == (f"{mine.mean():.3f}", "", f"{mine.min():.3f} to {mine.max():.3f}")
    assert [line[0].text for line in by_layer.rows] == list(synthetic.TENSORS)
    assert by_layer.keys == ("layer", "left %")


def vit(counts: dict[str, int]) -> RunResults:
    tensors = {name: {"kept": kept, "numel": 100, "kind": "fc"} for name, kept in counts.items()}
    fewer = {name: t | {"kept": t["kept"] - 2} for name, t in tensors.items()}
    denser = {name: t | {"kept": 100} for name, t in tensors.items()}
    places = [(0, 1, denser), (0, 2, tensors), (1, 1, denser), (1, 2, fewer)]
    results = tuple({"seed": s, "arm": "ticket", "round": number, "tensors": told} for s, number, told in places)
    return RunResults(Path("/vit"), "vit", SMALL, results)


def test_blocks_are_those_of_the_last_round() -> None:
    parts = {"attn.qkv": 10, "attn.proj": 20, "mlp.fc1": 30, "mlp.fc2": 40}
    named = {f"blocks.{b}.{part}.weight": kept + b for b in (0, 1, 10) for part, kept in parts.items()}
    frame = blocks(vit(named | {"head.weight": 90, "patch_embed.proj.weight": 80}))
    assert list(frame) == list(parts) and list(frame.index) == [0, 1, 10]
    assert frame.loc[10].tolist() == pytest.approx([(kept + 10 - 1) / 100 for kept in parts.values()])
    grid = matrices.blocks(frame)
    assert grid and [cell.text for cell in grid.rows[0]] == ["0", "9.00", "19.00", "29.00", "39.00"]


def test_other_networks_have_no_blocks(run: Path) -> None:
    assert blocks(read_run(run)).empty and matrices.blocks(blocks(read_run(run))) is None
    assert blocks(vit({"layer1.0.conv1.weight": 5})).empty


def test_hidden_units_in_another_order_are_found_again(run: Path) -> None:
    """Replicates whose masks are one up to the order of the units; chance is random masks, matched as well."""
    generator = torch.Generator().manual_seed(0)
    first = {n: torch.rand(s, generator=generator) < 0.3 for n, s in synthetic.TENSORS.items()}
    names, orders = list(first), [torch.randperm(len(kept), generator=generator) for kept in first.values()]
    second = {name: first[name][orders[place]] for place, name in enumerate(names[:-1])} | {NAME: first[NAME]}
    for before, name in enumerate(names[1:]):
        second[name] = second[name][:, orders[before]]
    for seed, mask in enumerate((first, second)):
        for number in (1, 2):
            Mask(mask).save(RunPaths(run).round(seed, "ticket", number).mask)
    frame = within(read_run(run))
    whole = row(frame, kind="replicates", round=2, tensor=ALL)
    assert whole["matched"] == 1 and whole["jaccard"] < 0.25 and whole["matched_chance"] < 0.35
    assert frame[frame["round"] == 1]["matched"].isna().all(), "at the last round only"
    grid = matrices.overlaps(frame, "replicates", "alike", "")[0]
    assert "matched" in grid.groups[0][2]
