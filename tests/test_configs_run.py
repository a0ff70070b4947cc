"""Every shipped config trains, prunes, rewinds and trains again, on a few images of the right shape and classes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import final, play, result, ticket_mask

from lth_scale import data, settings
from lth_scale.config import Config
from lth_scale.data.definition import Content, Images
from lth_scale.data.preparing import write_content

pytestmark = pytest.mark.slow

T, K, BATCH = 3, 1, 2
SHORT = [
    *(f"--train.duration={T}it", f"--rewind.at={K}it", f"--train.eval_every={T}it", "--prune.rounds=1"),
    *(f"--train.batch_size={BATCH}", "--train.micro_batch=0", "--run.seeds=0", "--run.arms=[ticket]"),
    *("--hardware.accelerator=cpu", "--hardware.precision=fp32"),  # few CPUs compute in bfloat16, others imitate it
]
STREAMED = [f"--data.lanes={BATCH}", "--data.workers=0"]
SAMPLES = {"train": 4, "validation": 2, "test": 2}


def pixels(random: np.random.Generator, count: int, *shape: int) -> np.ndarray:
    return random.integers(0, 256, (count, *shape), np.uint8)


def write_arrays(name: str, folder: Path) -> None:
    """A data set of memory: its own shape and classes, a handful of images."""
    known, random = data.datasets[name].description, np.random.default_rng(0)
    assert known is not None
    labels = {split: random.integers(0, known.classes, count) for split, count in SAMPLES.items()}
    parts = {split: Images(pixels(random, len(y), *known.shape), y.astype(np.int64)) for split, y in labels.items()}
    write_content(name, Content(**parts, class_names=tuple(map(str, range(known.classes))), rule="at random"), folder)


def write_jpegs(folder: Path, source: Path) -> None:
    """ImageNet's 1,000 classes, most of them empty, and JPEGs somewhat larger than the crop."""
    random = np.random.default_rng(0)
    for split, folder_name in (("train", "train"), ("test", "val")):
        for label in range(1000):
            (source / folder_name / f"n{label:08d}").mkdir(parents=True)
        for number in range(SAMPLES[split]):
            image = Image.fromarray(pixels(random, 1, 28, 32, 3)[0]).resize((256, 224))
            image.save(source / folder_name / f"n{125 * number:08d}" / f"{number}.JPEG")
    data.prepare("imagenet", folder, source, progress=False, jobs=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made when first asked for."""
    return {"root": tmp_path_factory.mktemp("data")}


def prepared(name: str, folders: dict[str, Path]) -> Path:
    if name not in folders:
        folders[name] = folders["root"] / name
        if data.datasets[name].streamed:
            write_jpegs(folders[name], folders["root"] / "source")
        else:
            write_arrays(name, folders[name])
    return folders[name]


def shortened(name: str, folders: dict[str, Path]) -> Config:
    made = settings.parse([name])
    streamed = STREAMED if data.datasets[made.data.name].streamed else []
    return settings.parse([name, *SHORT, *streamed, f"--data.dir={prepared(made.data.name, folders)}"])


@pytest.mark.parametrize("name", settings.shipped_configs())
def test_two_rounds_of_a_few_steps(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    made = shortened(name, folders)
    run = play(made, tmp_path / "run")
    dense, ticket = result(run, "ticket", 0), result(run, "ticket", 1)
    kept = run.plan[1].kept
    assert (dense["density"], ticket["density"]) == (1, run.plan[1].density)
    assert [(r["clock"]["start"], r["clock"]["end"]) for r in (dense, ticket)] == [(0, T), (K, T)]
    mask, weights = ticket_mask(run, 1), final(run, "ticket", 1).weights
    assert mask.kept == kept
    assert all(not weights[tensor][~alive].any() for tensor, alive in mask.items())
    assert all(weights[tensor].isfinite().all() for tensor in weights)
    assert made.model == settings.parse([name]).model and made.prune == replace(settings.parse([name]).prune, rounds=1)
    shutil.rmtree(tmp_path / "run")  # hundreds of megabytes
