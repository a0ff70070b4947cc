"""Images per second and core: our streamed path against torchvision's and WebDataset's, and against decoding alone.

    python tools/bench_data.py --out results/bench_data.csv

The JPEGs are made here: smooth shapes, detail of every size and noise. One process at a time, one thread, no workers;
subjects take turns, a pass over all images each, files in memory (the system's cache). Ratios are taken between passes
of one turn, by CPU time and by wall time, and medians over several processes given: where memory happens to lie makes
some percent, and stays for the life of a process. A pass should have many batches: after its last one the memory of two
goes back to the system. The limits hold for CPU time. Exit status 1 if one is missed.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import simplejpeg
import torch
import webdataset
from archive import general_machine
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lth_scale import config, files
from lth_scale.data import index as indexing
from lth_scale.data import prepare
from lth_scale.data.streamed.decode import Look, train_image
from lth_scale.data.streamed.loading import Streamed, StreamedBatches, open_streamed

CROP, CLASSES, TEST_IMAGES = 224, 4, 4
BATCH = 128  # of one device, where eight share the 1024 of the usual recipe
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS, SCALED, FOLDER, TAR, LIMIT = "ours", "ours, scaled", "ImageFolder", "WebDataset", "decoding alone"


@dataclass(frozen=True)
class Kind:
    """Images of one size, and how many of a hundred have it."""

    width: int
    height: int
    share: int


@dataclass(frozen=True)
class Setting:
    """Which images, and the limits: ours over ImageFolder; ours over decoding alone, without and with scaling."""

    name: str
    kinds: tuple[Kind, ...]
    folder: float
    whole: float
    scaled: float | None


# ImageNet's images have 469 x 387 pixels and 110 kB on average, and most are 500 pixels wide or high. These averages
# leave room for some 3 % of large ones, balanced by a fifth of small ones; one JPEG quality for all gives the bytes.
MIX = Setting(
    "ImageNet's sizes",
    (
        Kind(500, 375, 40), Kind(500, 333, 15), Kind(375, 500, 16), Kind(333, 500, 8), Kind(300, 225, 18),
        Kind(1600, 1200, 3),
    ),
    folder=2.5, whole=0.70, scaled=0.85,
)  # fmt: skip
PLAIN = Setting("500 x 375 only", (Kind(500, 375, 100),), folder=2.5, whole=0.70, scaled=None)
QUALITY, NOISE = 93, 8.0


def picture(kind: Kind, generator: np.random.Generator) -> bytes:
    """A JPEG: luminance of falling spectrum, some colour, and noise."""
    size, pixels = (kind.height, kind.width), torch.zeros(1, 3, kind.height, kind.width)
    for cells, height in ((4, 60), (16, 35), (64, 25), (128, 12)):
        grid = torch.from_numpy(generator.standard_normal((1, 3, cells, cells)).astype(np.float32))
        pixels += height * interpolate(grid, size=size, mode="bicubic")
    noise = NOISE * torch.from_numpy(generator.standard_normal((1, 1, *size)).astype(np.float32))
    pixels = 128 + 0.8 * pixels.mean(1, keepdim=True) + 0.35 * pixels + noise
    stream = io.BytesIO()
    image = Image.fromarray(pixels[0].clamp(0, 255).byte().permute(1, 2, 0).numpy())
    image.save(stream, "jpeg", quality=QUALITY)
    return stream.getvalue()


def kinds(setting: Setting, count: int) -> list[Kind]:
    """So many kinds in their shares, largest remainders first, mixed."""
    exact = [kind.share * count / 100 for kind in setting.kinds]
    counts = [int(share) for share in exact]
    for place in sorted(range(len(exact)), key=lambda at: counts[at] - exact[at])[: count - sum(counts)]:
        counts[place] += 1
    chosen = [kind for kind, many in zip(setting.kinds, counts, strict=True) for _ in range(many)]
    return [chosen[row] for row in np.random.default_rng(0).permutation(count)]


def write_images(setting: Setting, folder: Path, count: int) -> list[bytes]:
    """Class folders of a train and a test split; the training images' bytes."""
    generator, found = np.random.default_rng(0), []
    for number, kind in enumerate(kinds(setting, count) + [setting.kinds[0]] * TEST_IMAGES):
        data = picture(kind, generator)
        split = "train" if number < count else "test"
        files.write_bytes(folder / split / f"class_{number % CLASSES}" / f"{number:06d}.jpg", data)
        found.append(data)
    return found[:count]


@dataclass
class Times:
    """Seconds of one subject's passes, a line a pass."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[int], int], epoch: int, images: int) -> None:
        """One pass over all images; the first is warm-up."""
        cpu, wall = time.process_time(), time.perf_counter()
        served = call(epoch)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        assert served == images, f"{served} of {images} images were served"
        if epoch:
            self.cpu.append(cpu)
            self.wall.append(wall)

    def __add__(self, other: Times) -> Times:
        return Times(self.cpu + other.cpu, self.wall + other.wall)


def count_batches(batches: Any) -> int:
    """How many images they hold, of the shape that training takes."""
    count = 0
    for images, labels in batches:
        assert images.shape == (len(labels), 3, CROP, CROP)
        count += len(labels)
    return count


def opened(folder: Path, scaled: bool) -> Streamed:
    """Our data set."""
    data = config.Data(
        name="jpeg_folder", dir=str(folder), augment="resized_crop", crop=CROP, lanes=1, scaled_decode=scaled, workers=0
    )
    return open_streamed(folder, indexing.read(folder), data)


def ours(dataset: Streamed, epoch: int) -> int:
    """An epoch as training reads it: order, shards, checksums, crops, batches."""
    steps = dataset.length("train") // BATCH
    span = {"start": steps * epoch, "stop": steps * (epoch + 1)}
    return count_batches(
        StreamedBatches(dataset, batch_size=BATCH, micro_batch=0, **span, order=0, augment_seed=0, noise=0)
    )


def usual_transform() -> Any:
    """Of torchvision's reference training."""
    crop, mirror = transforms.RandomResizedCrop(CROP), transforms.RandomHorizontalFlip()
    return transforms.Compose([crop, mirror, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def image_folder(folder: Path) -> Any:
    """torchvision's own way."""
    return DataLoader(ImageFolder(str(folder / "train"), usual_transform()), BATCH, shuffle=True, num_workers=0)


def web_dataset(folder: Path) -> Any:
    """WebDataset's usual pipeline, over our shards."""
    shards = [str(folder / shard.file) for shard in indexing.read(folder).splits["train"]]
    decoded = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode("pil")
    transform = usual_transform()
    samples = decoded.to_tuple("jpg", "cls").map_tuple(transform, lambda label: label).batched(BATCH)
    return webdataset.WebLoader(samples, batch_size=None, num_workers=0)


def decode_all(images: Sequence[bytes]) -> int:
    """The limit: nothing but decoding, whole and in full resolution."""
    for image in images:
        simplejpeg.decode_jpeg(image)
    return len(images)


def one_process(source: Path, shards: Path, images: Sequence[bytes], repeats: int) -> dict[str, Times]:
    """The subjects, in the order in which they take turns."""
    torch.set_num_threads(1)
    whole, scaled = opened(shards, scaled=False), opened(shards, scaled=True)
    folder, tar = image_folder(source), web_dataset(shards)
    subjects: dict[str, Callable[[int], int]] = {
        LIMIT: lambda _: decode_all(images),
        OURS: lambda epoch: ours(whole, epoch),
        SCALED: lambda epoch: ours(scaled, epoch),
        FOLDER: lambda _: count_batches(folder),
        TAR: lambda _: count_batches(tar),
    }
    found = {name: Times() for name in subjects}
    for epoch in range(repeats + 1):
        for name, call in subjects.items():
            found[name].measure(call, epoch, len(images))
    return found


def measure(setting: Setting, count: int, repeats: int, processes: int) -> tuple[dict[str, Times], str]:
    """All subjects of a setting, and what its images are like."""
    with tempfile.TemporaryDirectory() as folder:
        source, shards = Path(folder) / "images", Path(folder) / "shards"
        images = write_images(setting, source, count)
        prepare("jpeg_folder", shards, source, progress=False, shard_size=max(1, count // 4), jobs=1)
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            parts = [pool.apply(one_process, (source, shards, images, repeats)) for _ in range(processes)]
    return {name: sum((part[name] for part in parts), Times()) for name in parts[0]}, describe(setting, images)


def describe(setting: Setting, images: Sequence[bytes]) -> str:
    """Sizes, and what scaled decoding does to the pixels that the model sees."""
    sizes = np.array([simplejpeg.decode_jpeg_header(image)[:2] for image in images])
    height, width = sizes.mean(axis=0)
    change = differences(images)
    text = (
        f"{setting.name}: {len(images)} images, on average {width:.0f} x {height:.0f} pixels and "
        f"{np.mean([len(image) for image in images]) / 1e3:.0f} kB; scaled decoding changes what the model sees by "
        f"{change.mean():.2f} of 255 on average, {change.max()} at most"
    )
    large = sizes.min(axis=1) >= 2 * CROP
    return f"{text} ({change[large].mean():.2f} and {change[large].max()} where it may halve)" if large.any() else text


def differences(images: Sequence[bytes]) -> Any:
    """How each image differs, scaled, from the same crop of the whole image: [N, 3, CROP, CROP], of 255."""
    whole, scaled = Look(CROP, "resized_crop", False, 0), Look(CROP, "resized_crop", True, 0)
    first, second = (
        torch.stack([train_image(image, look, 0, 0, 0, number) for number, image in enumerate(images)]).int()
        for look in (whole, scaled)
    )
    return (first - second).abs().numpy()


def rows(setting: Setting, measured: dict[str, Times], images: int) -> list[dict[str, Any]]:
    """The table of a setting: one line a comparison."""
    compared: list[tuple[str, str, float | None]] = [
        (OURS, FOLDER, setting.folder),
        (OURS, TAR, None),
        (OURS, LIMIT, setting.whole),
        (SCALED, FOLDER, setting.folder),
        (SCALED, TAR, None),
        (SCALED, LIMIT, setting.scaled),
    ]
    return [_row(setting, measured, first, second, limit, images) for first, second, limit in compared]


def _row(
    setting: Setting, measured: dict[str, Times], first: str, second: str, limit: float | None, images: int
) -> dict[str, Any]:
    ours, theirs = measured[first], measured[second]
    cpu, wall = (
        statistics.median(b / a for a, b in zip(getattr(ours, clock), getattr(theirs, clock), strict=True))
        for clock in ("cpu", "wall")
    )
    return {
        "setting": setting.name,
        "comparison": f"speed of {first} / {second}",
        "cpu": f"{cpu:.3f}",
        "wall": f"{wall:.3f}",
        "limit": "" if limit is None else f">= {limit}",
        "kept": "" if limit is None else "yes" if cpu >= limit else "no",
        "images_per_second": " / ".join(f"{images / statistics.median(one.cpu):.0f}" for one in (ours, theirs)),
        "passes": len(ours.cpu),
    }


def write(out: Path, table: Sequence[dict[str, Any]], notes: str) -> None:
    """For the page of benchmarks."""
    lines = [",".join(table[0]), *(",".join(f'"{value}"' for value in row.values()) for row in table)]
    files.write_text(out, "\n".join(lines) + "\n")
    files.write_text(out.with_suffix(".machine.txt"), notes + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="passes of each subject in a process")
    parser.add_argument("--processes", type=int, default=5, help="one after the other")
    parser.add_argument("--images", type=int, default=1024, help=f"a multiple of {BATCH}")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.images < BATCH or options.images % BATCH:
        parser.error(f"--images must be a multiple of {BATCH}")
    table: list[dict[str, Any]] = []
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "simplejpeg", "nvidia-nvimgcodec-cu13"))
    notes = [f"{general_machine()}, {versions}, one thread, {options.processes} processes"]
    for setting in (MIX, PLAIN):
        measured, note = measure(setting, options.images, options.repeats, options.processes)
        table += rows(setting, measured, options.images)
        notes.append(note)
    for row in table:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print("\n".join(notes))
    if options.out:
        write(options.out, table, ". ".join(notes))
    return int(any(row["kept"] == "no" for row in table))


if __name__ == "__main__":
    sys.exit(main())
