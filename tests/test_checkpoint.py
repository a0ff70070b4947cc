"""States on disk: any cut over any ranks reads back bit for bit, by any range; and how a mask is applied to them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import SHAPES, assembled, even, octets, same, state, write

from lth_scale import checkpoint, files
from lth_scale.checkpoint import MANIFEST, Composite, Entry, Part, Source, State, Stored, layout
from lth_scale.errors import UserError
from lth_scale.masks import Mask

FILE = "rank_00000.safetensors"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("states")


def fresh(scratch: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=scratch)) / "state"


# --- any cut, any range -----------------------------------------------------------------------------------------------


@st.composite
def cut(draw: st.DrawFn) -> tuple[State, dict[str, list[int]]]:
    """A state, and where its tensors are cut over 1 to 4 ranks."""
    world, made = draw(st.integers(1, 4)), state(draw(st.integers(0, 9)))
    places = {key: st.integers(0, tensor.numel()) for key, tensor in made.flat().items()}
    return made, {key: draw(st.lists(place, min_size=world - 1, max_size=world - 1)) for key, place in places.items()}


@settings(max_examples=60)
@given(drawn=cut(), data=st.data())
def test_any_cut_reads_back_by_any_range(
    drawn: tuple[State, dict[str, list[int]]], data: st.DataObject, scratch: Path
) -> None:
    made, cuts = drawn
    folder = fresh(scratch)
    size = write(folder, made, cuts)
    stored = Stored.open(folder)
    assert size == stored.bytes == sum(path.stat().st_size for path in folder.glob("rank_*"))
    assert (stored.step, stored.extra) == (made.step, {"seconds": 1.5})
    for key, tensor in made.flat().items():
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, tensor.numel())] * 2)))
        piece = stored.read(key, start, stop)
        assert piece.shape == (stop - start,) and piece.dtype == tensor.dtype
        assert octets(piece) == octets(tensor.reshape(-1)[start:stop])
    assert same(stored, made) and same(checkpoint.load_state(folder), made)
    assert stored.digest() == made.digest() == files.sha256_tensors(made.flat())
    assert stored.digest("weights") == files.sha256_tensors(made.weights)
    assert stored.differences(made) == made.differences(stored) == []


@settings(max_examples=30)
@given(drawn=cut(), world=st.integers(1, 5))
def test_shares_make_up_every_tensor(drawn: tuple[State, dict[str, list[int]]], world: int, scratch: Path) -> None:
    made, cuts = drawn
    folder = fresh(scratch)
    write(folder, made, cuts)
    stored = Stored.open(folder)
    for key, entry in stored.entries().items():
        shares = sorted(stored.share(key, rank, world) for rank in range(world))
        covered = [place for start, stop in shares for place in range(start, stop)]
        assert covered == list(range(entry.numel))


@settings(max_examples=60)
@given(key=st.sampled_from([key for key in SHAPES if key != "weights/none"]), at=st.integers(0, 10_000))
def test_one_bit_makes_a_difference(key: str, at: int) -> None:
    """The control for all that is said to be equal."""
    one, other = state(), state().whole()
    flat = other.flat()[key].reshape(-1).view(torch.uint8)
    at %= len(flat)
    flat[at] ^= 1 if flat[at] <= 1 else 64  # a bool stays one
    assert one.differences(other) == [key] and one.digest() != other.digest() and not same(one, other)


def test_differences_of_names_shapes_and_dtypes() -> None:
    tensor = torch.zeros(6)
    one = State({"a": tensor, "b": tensor, "c": tensor, "d": tensor, "e": tensor})
    other = State({"a": tensor, "b": tensor.reshape(2, 3), "c": tensor.int(), "d": -tensor, "f": tensor})
    assert one.differences(other) == [f"weights/{name}" for name in "bcdef"]
    assert one.differences(State(one.weights, step=3)) == []


def test_whole_is_a_copy(tmp_path: Path) -> None:
    made = state()
    checkpoint.save_state(tmp_path / "s", made)
    for source in (made, Stored.open(tmp_path / "s")):
        copy = source.whole()
        copy.weights["fc.bias"].view(torch.uint8).fill_(1)
        assert copy.differences(source) == ["weights/fc.bias"] and same(source, state())


def test_what_is_written_into_a_range_reaches_no_file(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path / "s", state())
    Stored.open(tmp_path / "s").read("weights/fc.weight", 0, 30).zero_()
    assert same(Stored.open(tmp_path / "s"), state())


# --- what lies on disk ------------------------------------------------------------------------------------------------


def test_one_process_writes_what_the_library_would(tmp_path: Path) -> None:
    made = state()
    made.weights["cänal\n"] = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    checkpoint.save_state(tmp_path / "s", made)
    table = {key: tensor.contiguous() for key, tensor in made.flat().items()}
    assert (tmp_path / "s" / FILE).read_bytes() == safetensors.torch.save(table)
    for dtype in layout.DTYPES.values():
        one = {"weights/a": torch.zeros(3, dtype=dtype), "buffers/b": torch.zeros(1, dtype=torch.bool)}
        checkpoint.save_state(tmp_path / str(dtype), assembled(one, 0))
        assert (tmp_path / str(dtype) / FILE).read_bytes() == safetensors.torch.save(one)
        assert same(Stored.open(tmp_path / str(dtype)), assembled(one, 0))


def test_parts_lie_flat_and_whole_tensors_in_their_shape(tmp_path: Path) -> None:
    made = state()
    write(tmp_path / "s", made, even(made, 2) | {"weights/fc.bias": [6], "buffers/bn.mean": [0]})
    first, second = (safetensors.torch.load_file(tmp_path / "s" / f"rank_0000{rank}.safetensors") for rank in (0, 1))
    assert first["weights/fc.weight"].shape == second["weights/fc.weight"].shape == (15,)
    assert first["weights/fc.bias"].shape == (6,) and "weights/fc.bias" not in second
    assert second["buffers/bn.mean"].shape == (6,) and "buffers/bn.mean" not in first
    assert first["weights/none"].shape == (0, 4)
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_text())
    assert manifest["world_size"] == 2 and [file["name"] for file in manifest["files"]] == [
        FILE,
        FILE.replace("0.", "1."),
    ]
    assert {
        "name": "weights/fc.weight",
        "rank": 1,
        "offset": 15,
        "length": 15,
        "shape": [6, 5],
        "dtype": "torch.float32",
    } in manifest["ranges"]


def test_every_number_is_aligned(tmp_path: Path) -> None:
    """So that a view of the file is as good as memory, whatever the names' lengths."""
    for length in range(1, 9):
        made = State({"n" * length: torch.randn(3), "b": torch.zeros(5, dtype=torch.bool)}, {"c": torch.tensor(1)})
        folder = tmp_path / str(length)
        checkpoint.save_state(folder, made)
        stored = Stored.open(folder)
        for key, entry in stored.entries().items():
            assert stored.read(key, 0, entry.numel).data_ptr() % entry.dtype.itemsize == 0


def test_ranks_without_parts_write_no_file(tmp_path: Path) -> None:
    made = state()
    write(
        tmp_path / "s",
        made,
        {key: [0, tensor.numel()] for key, tensor in made.flat().items() if tensor.numel()} | {"weights/none": [0, 0]},
    )
    assert sorted(path.name for path in (tmp_path / "s").glob("rank_*")) == [FILE, "rank_00001.safetensors"]
    assert Stored.open(tmp_path / "s").manifest["world_size"] == 3 and same(Stored.open(tmp_path / "s"), made)


def test_folders_of_the_first_version_load(tmp_path: Path) -> None:
    """One file as the library writes it, and a manifest without a checksum of its own."""
    made, folder = state(step=4), tmp_path / "step_00000004.attempt_1"
    data = safetensors.torch.save(made.flat())
    ranges = [
        {"name": n, "rank": 0, "offset": 0, "length": t.numel(), "shape": list(t.shape), "dtype": str(t.dtype)}
        for n, t in made.flat().items()
    ]
    file = {"name": FILE, "bytes": len(data), "sha256": files.sha256_bytes(data)}
    old = {
        "format": 1,
        "step": 4,
        "world_size": 1,
        "files": [file],
        "ranges": ranges,
        "torch": "2.9",
        "extra": {"a": 1},
    }
    files.write_bytes(folder / FILE, data)
    files.write_json(folder / MANIFEST, old)
    found = checkpoint.latest(tmp_path)
    assert found is not None and found[0] == folder and found[1].extra == {"a": 1} and found[1].step == 4
    assert same(found[1], made) and found[1].digest() == made.digest()
    checkpoint.save_state(tmp_path / "new", made, {"a": 1})
    new = checkpoint.load_manifest(tmp_path / "new")
    assert (tmp_path / "new" / FILE).read_bytes() == data
    assert {key: new[key] for key in old if key != "torch"} == {key: old[key] for key in old if key != "torch"}


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        ([(0, 3), (4, 2)], "ranges of weights/a leave out 3 to 4"),
        ([(0, 3), (2, 4)], "ranges of weights/a overlap at 2"),
        ([(0, 3)], "ranges of weights/a end at 3, its size is 6"),
        ([(0, 3), (3, 4)], "ranges of weights/a end at 7, its size is 6"),
    ],
)
def test_ranges_that_are_no_whole_are_not_saved(ranges: list[tuple[int, int]], why: str, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    scratch = checkpoint.writing.begin(folder)
    written = [
        checkpoint.writing.write_rank(folder, scratch, rank, [Part("weights/a", offset, torch.zeros(length), (6,))])
        for rank, (offset, length) in enumerate(ranges)
    ]
    with pytest.raises(RuntimeError, match=why):
        checkpoint.writing.finish(folder, scratch, written, 0, None)
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="end at 3"):
        checkpoint.save(folder, [Part("weights/a", 0, torch.zeros(3), (6,))], 0)
    with pytest.raises(AssertionError, match="weights/a is given twice"):
        checkpoint.save(folder, [Part("weights/a", at, torch.zeros(3), (6,)) for at in (0, 3)], 0)
    assert list(tmp_path.iterdir()) == [scratch]


# --- times a mask -----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=st.integers(0, 99), data=st.data())
def test_masked_is_plus_zero_where_pruned_and_untouched_elsewhere(seed: int, data: st.DataObject) -> None:
    made, generator = state(seed), torch.Generator().manual_seed(seed)
    shapes = {"fc.weight": (6, 5), "half": (3, 3)}
    mask = Mask({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()})
    masked = made.masked(mask)
    assert masked.step == made.step and masked.entries() == made.entries()
    for key, tensor in made.flat().items():
        name = {"weights/half": "half", "optimizer/half/exp_avg": "half"}.get(key, "")
        name = "fc.weight" if key in ("weights/fc.weight", "optimizer/fc.weight/exp_avg") else name
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, tensor.numel())] * 2)))
        found, flat = masked.read(key, start, stop), tensor.reshape(-1)[start:stop]
        keep = mask[name].reshape(-1)[start:stop] if name else torch.ones(len(flat), dtype=torch.bool)
        width = tensor.element_size()
        rows = found.view(torch.uint8).reshape(-1, width), flat.view(torch.uint8).reshape(-1, width)
        assert found.dtype == tensor.dtype and not rows[0][~keep].any() and torch.equal(rows[0][keep], rows[1][keep])
    assert masked.digest() == masked.whole().digest() and masked.differences(made.masked(mask)) == []


def test_a_product_would_leave_other_bytes(tmp_path: Path) -> None:
    """The control: what is not done. Optimizer state of another shape stays."""
    weight = torch.tensor([-1.0, float("nan"), float("inf"), 2.0])
    made = State({"a": weight}, {}, {"a": {"step": torch.tensor(3.0), "m": weight.clone()}})
    mask = Mask({"a": torch.tensor([False, False, False, True])})
    plain = torch.tensor([0.0, 0.0, 0.0, 2.0])
    assert octets(weight * mask["a"]) != octets(plain)
    checkpoint.save_state(tmp_path / "s", made)
    for source in (made, Stored.open(tmp_path / "s")):
        masked = source.masked(mask).whole()
        assert octets(masked.weights["a"]) == octets(masked.optimizer["a"]["m"]) == octets(plain)
        assert masked.optimizer["a"]["step"] == 3


def test_a_mask_of_another_shape_is_not_applied() -> None:
    made = State({"a": torch.ones(4)})
    assert made.masked(Mask({"a": torch.zeros(2, 2, dtype=torch.bool)})).differences(made) == []


def test_a_state_put_together_from_others() -> None:
    one, two, three = state(1), state(2), state(3)
    both: Source = Composite(one, two, three, 11)
    assert both.step == 11 and both.whole().step == 11
    assert both.differences(State(one.weights, two.buffers, three.optimizer)) == []
    fresh = Composite(one, two, None, 0)
    assert fresh.differences(State(one.weights, two.buffers)) == [] and not fresh.whole().optimizer
    assert Entry((6, 5), torch.float32) == fresh.entries()["weights/fc.weight"]
    mask = Mask({"fc.weight": torch.zeros(6, 5, dtype=torch.bool)})
    assert both.masked(mask).digest() == both.whole().masked(mask).whole().digest() != both.digest()


# --- which are kept ---------------------------------------------------------------------------------------------------


def publish(folder: Path, of: State, attempt: int = 1) -> Path:
    whole = (Part(key, 0, tensor, tuple(tensor.shape)) for key, tensor in of.flat().items())
    return checkpoint.publish(folder, whole, of.step, attempt, {"attempt": attempt})


def test_publishing_removes_older_ones_once_the_new_one_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(tmp_path, state(step=5))
    (tmp_path / "step_mine").mkdir()
    (tmp_path / "step_x.attempt_y").mkdir()
    second = publish(tmp_path, state(1, step=6), attempt=2)
    assert (first.name, second.name) == ("step_00000005.attempt_1", "step_00000006.attempt_2")
    assert checkpoint.candidates(tmp_path) == [second] and (tmp_path / "step_mine").is_dir()
    real = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: "0" if "00000007" in str(path) else real(path))
    with pytest.raises(UserError, match=r"step_00000007.attempt_3/rank_00000.safetensors is damaged"):
        publish(tmp_path, state(2, step=7), attempt=3)
    assert second in checkpoint.candidates(tmp_path)
    found = checkpoint.latest(tmp_path)
    assert found is not None and found[0] == second and same(found[1], state(1))


def test_the_highest_step_then_the_highest_attempt_is_the_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step, attempt in [(9, 1), (10, 1), (10, 12), (10, 2)]:
        checkpoint.save_state(tmp_path / f"step_{step:08d}.attempt_{attempt}", state(attempt, step=step))
    found = checkpoint.latest(tmp_path)
    assert found is not None and found[0].name == "step_00000010.attempt_12" and same(found[1], state(12))
