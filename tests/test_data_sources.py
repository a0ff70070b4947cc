"""Each data set's own files: read when whole, refused by name when not, and never trusted."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from lth_scale import config
from lth_scale.data import datasets, load, prepare, verify
from lth_scale.data.cifar import CIFAR10, CIFAR100, Layout, read_parts
from lth_scale.data.definition import Source
from lth_scale.data.idx import read_idx
from lth_scale.data.sources import download
from lth_scale.data.svhn import read_mat
from lth_scale.errors import UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx_set(folder: Path, train: int, test: int, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        for stem, values in (
            (f"{prefix}-images-idx3-ubyte", RNG.integers(0, 256, (count, 28, 28), np.uint8)),
            (f"{prefix}-labels-idx1-ubyte", RNG.integers(0, 10, count, np.uint8)),
        ):
            name = folder / (stem + (".gz" if packed else ""))
            name.write_bytes(gzip.compress(idx(values), 1) if packed else idx(values))


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_idx_plain_and_gzip(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = RNG.integers(0, 256, shape, np.uint8)
    (tmp_path / "plain").write_bytes(idx(values))
    (tmp_path / "packed").write_bytes(gzip.compress(idx(values)))
    for name in ("plain", "packed"):
        assert np.array_equal(read_idx(tmp_path / name), values)


WHOLE = idx(np.zeros((4, 3, 2), np.uint8))
BAD_IDX = {
    "empty": b"",
    "magic": b"\1" + WHOLE[1:],
    "type": WHOLE[:2] + b"\x0d" + WHOLE[3:],
    "rank": WHOLE[:3] + b"\0" + WHOLE[4:],
    "header": WHOLE[:10],
    "count": WHOLE[:7] + b"\5" + WHOLE[8:],
    "short": WHOLE[:-1],
    "long": WHOLE + b"\0",
    "gzip cut": gzip.compress(WHOLE)[:-12],
    "gzip flipped": gzip.compress(WHOLE)[:-6] + b"\1" + gzip.compress(WHOLE)[-5:],
    "html": b"<html>not found</html>",
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_damaged_idx_files_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(BAD_IDX[kind])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte .*--source"):
        read_idx(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist_is_cut_into_train_and_validation(packed: bool, below: str, tmp_path: Path) -> None:
    write_idx_set(tmp_path / below, 6000, 50, packed)
    content = datasets["mnist"].read(Source(tmp_path))
    assert (len(content.train), len(content.validation), len(content.test)) == (1000, 5000, 50)
    assert content.train.images.shape == (1000, 1, 28, 28)


def test_an_incomplete_source_is_refused(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "source", 6000, 50, False)
    with pytest.raises(UserError, match=r"1000 train images, 55000 were expected"):
        prepare("mnist", tmp_path / "out", tmp_path / "source", progress=False)
    (tmp_path / "source" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"holds no t10k-labels-idx1-ubyte"):
        prepare("mnist", tmp_path / "out", tmp_path / "source", progress=False)
    with pytest.raises(UserError, match=r"--source .*absent does not exist"):
        prepare("mnist", tmp_path / "out", tmp_path / "absent", progress=False)
    assert not (tmp_path / "out").exists()


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    write_idx_set(tmp_path, 6000, 50, False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(49, np.uint8)))
    with pytest.raises(UserError, match="do not belong together"):
        datasets["mnist"].read(Source(tmp_path))


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_found_where_its_package_put_it() -> None:
    (place,) = (place for place in datasets["fashion_mnist"].places if place.is_dir())
    content = datasets["fashion_mnist"].read(Source(place))
    assert (len(content.train), len(content.validation), len(content.test)) == (55_000, 5000, 10_000)
    assert np.bincount(np.concatenate([content.train.labels, content.validation.labels])).tolist() == [6000] * 10


@pytest.mark.slow
@pytest.mark.skipif("LTH_MNIST" not in os.environ, reason="LTH_MNIST does not name the folder of MNIST's files")
def test_mnist_from_its_files_to_memory(tmp_path: Path) -> None:
    summary = prepare("mnist", tmp_path, Path(os.environ["LTH_MNIST"]), progress=False)
    dataset = load(config.Data(name="mnist", dir=str(tmp_path)))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (55_000, 5000, 10_000)
    assert dataset.mean == pytest.approx((0.1307,), abs=2e-4) and dataset.std == pytest.approx((0.3081,), abs=2e-4)
    assert verify(tmp_path) == summary


def cifar(layout: Layout, train: int = 6, test: int = 4, classes: int = 10) -> dict[str, dict[bytes, Any]]:
    def batch(count: int) -> dict[bytes, Any]:
        labels = RNG.integers(0, classes, count).tolist()
        return {b"data": RNG.integers(0, 256, (count, 3072), np.uint8), layout.labels: labels, b"filenames": [b"x.png"]}

    batches = {name: batch(train) for name in layout.train} | {layout.test: batch(test)}
    return batches | {layout.meta: {layout.names: [b"class %d" % label for label in range(classes)]}}


def write_cifar(folder: Path, layout: Layout, batches: dict[str, dict[bytes, Any]], archive: bool) -> Path:
    inner = folder / layout.folder
    inner.mkdir(parents=True)
    for name, batch in batches.items():
        (inner / name).write_bytes(pickle.dumps(batch, protocol=2))
    if archive:
        with tarfile.open(folder / layout.archive, "w:gz") as tar:
            tar.add(inner, layout.folder)
        for path in inner.iterdir():
            path.unlink()
    return folder


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "folder"])
@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=["10", "100"])
def test_cifar_batches_are_read(layout: Layout, archive: bool, tmp_path: Path) -> None:
    batches = cifar(layout)
    train, test, names = read_parts(write_cifar(tmp_path, layout, batches, archive), layout)
    data = np.concatenate([batches[name][b"data"] for name in layout.train])
    assert np.array_equal(train.images, data.reshape(-1, 3, 32, 32))
    assert train.labels.tolist() == [label for name in layout.train for label in batches[name][layout.labels]]
    assert len(test) == 4 and names[3] == "class 3" and len(names) == 10
    for source in (tmp_path / layout.archive,) if archive else (tmp_path / layout.folder,):
        assert np.array_equal(read_parts(source, layout)[1].images, test.images)


class Evil:
    """Runs a command when it is unpickled by a trusting reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_batch_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    batches = cifar(CIFAR10) | {"data_batch_2": {b"data": Evil(trap)}}
    pickle.loads(pickle.dumps(Evil(trap)))
    trap.rmdir()  # the trap works on a trusting reader
    source = write_cifar(tmp_path / "source", CIFAR10, batches, archive=False)
    with pytest.raises(UserError, match=r"data_batch_2 is damaged or not a batch.*mkdir"):
        prepare("cifar10", tmp_path / "out", source, progress=False)
    assert not trap.exists() and not (tmp_path / "out").exists()


BAD_CIFAR: dict[str, tuple[Any, str]] = {
    "not a dictionary": ([1, 2], "holds a list"),
    "no data": ({b"labels": [1]}, r"data_batch_1: its images are"),
    "one label short": ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, r"its labels \(1,\)"),
    "floats": ({b"data": np.zeros((1, 3072)), b"labels": [1]}, "its images are float64"),
    "label out of range": ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, r"label is not in 0\.\.9"),
}


@pytest.mark.parametrize("kind", BAD_CIFAR)
def test_damaged_cifar_batches_are_named(kind: str, tmp_path: Path) -> None:
    batch, message = BAD_CIFAR[kind]
    source = write_cifar(tmp_path, CIFAR10, cifar(CIFAR10) | {"data_batch_1": batch}, archive=False)
    with pytest.raises(UserError, match=message):
        read_parts(source, CIFAR10)


def test_missing_and_cut_cifar_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither cifar-10-python\.tar\.gz nor"):
        read_parts(tmp_path, CIFAR10)
    packed = write_cifar(tmp_path / "packed", CIFAR10, cifar(CIFAR10), archive=True)
    with pytest.raises(UserError, match=r"is not cifar-100-python\.tar\.gz"):
        read_parts(packed / CIFAR10.archive, CIFAR100)
    path = packed / CIFAR10.archive
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is damaged"):
        read_parts(packed, CIFAR10)
    folder = write_cifar(tmp_path / "folder", CIFAR10, cifar(CIFAR10), archive=False) / CIFAR10.folder
    (folder / "data_batch_4").write_bytes(b"\x80\x02}q")
    with pytest.raises(UserError, match=r"data_batch_4 is damaged"):
        read_parts(folder, CIFAR10)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"lacks data_batch_4"):
        read_parts(folder, CIFAR10)


def test_svhn_files_are_read_with_10_as_0(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (32, 32, 3, 6), np.uint8), np.array([[10], [1], [2], [9], [10], [3]], np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": x, "y": y})
    samples = read_mat(tmp_path / "train_32x32.mat")
    assert samples.labels.tolist() == [0, 1, 2, 9, 0, 3]
    assert np.array_equal(samples.images[4, 2], x[:, :, 2, 4])


@pytest.mark.parametrize("kind", ["garbage", "cut", "other variables", "shape", "label"])
def test_damaged_svhn_files_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "test_32x32.mat"
    good = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)}
    change = {"other variables": {"X": 1}, "shape": good | {"y": np.ones((3, 1))}, "label": good | {"y": [[11], [1]]}}
    savemat(path, change.get(kind, good))
    if kind == "cut":
        os.truncate(path, path.stat().st_size // 2)
    if kind == "garbage":
        path.write_bytes(b"not a mat file" * 20)
    with pytest.raises(UserError, match=r"test_32x32\.mat is"):
        read_mat(path)


def test_a_download_that_fails_names_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot download \(http://127\.0\.0\.1:9/a.*127\.0\.0\.1:9/b.*--source"):
        download(["http://127.0.0.1:9/a", "http://127.0.0.1:9/b"], tmp_path, "0" * 32)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a web server of our own, and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_a_download_is_checked(served: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = served
    (folder / "file").write_bytes(b"content")
    right = hashlib.md5(b"content").hexdigest()
    download(["http://127.0.0.1:9/file", f"{address}/file"], tmp_path / "into", right)
    assert (tmp_path / "into" / "file").read_bytes() == b"content"
    with pytest.raises(UserError, match=r"cannot download.*--source"):
        download([f"{address}/file"], tmp_path / "other", "0" * 32)


def test_without_a_source_the_files_are_fetched(
    served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = served
    write_cifar(folder, CIFAR10, cifar(CIFAR10), archive=True)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", f"{address}/{CIFAR10.archive}")
    digest = hashlib.md5((folder / CIFAR10.archive).read_bytes()).hexdigest()
    monkeypatch.setattr("torchvision.datasets.CIFAR10.tgz_md5", digest)
    with pytest.raises(UserError, match="cifar10: the source has 30 training images"):
        prepare("cifar10", tmp_path / "out", progress=False)


@pytest.mark.parametrize("name", list(datasets))
def test_every_data_set_can_be_had_somehow(name: str) -> None:
    definition = datasets[name]
    assert definition.needs
    assert definition.makes_itself or definition.fetch or definition.streamed or definition.description is None
    assert (definition.read is None) == definition.streamed == (definition.write is not None)
