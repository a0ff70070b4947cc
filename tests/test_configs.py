"""Every shipped config plans without its data and is priced; its network has the weights that its paper counts."""

from __future__ import annotations

import re
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lth_scale import config, costs, models, settings
from lth_scale.costs import Cost, Sizes
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.plan import plan
from lth_scale.resources import folder

SHIPPED = settings.shipped_configs()
DOCS = Path(__file__).resolve().parent.parent / "docs" / "configs.md"
ASKED = {
    *(f"imagenet_{name}" for name in ("resnet50", "resnet50_cosine", "vit_small", "deit_small")),
    *(f"cifar10_{name}" for name in ("resnet20", "vgg16", "conv2", "conv4", "conv6")),
    *("cifar100_resnet18", "fashion_mnist_lenet", "mnist_lenet"),
}
TIMED = {  # measured here, in minutes of a core
    *("digits_lenet", "digits_methods", "fashion_mnist_late_rewinding", "fashion_mnist_vit", "mnist_lenet"),
    *("transfer_lenet", "transfer_resnet"),
}
COST = re.compile(r"Costs about ([\d,]+) (?:GPU|core)-hours at ([\d,]+) images/s")


@cache
def planned(name: str) -> Experiment:
    """The experiment of a shipped config, its data nowhere."""
    return Experiment.at(settings.parse([name, "--data.dir=not/there"]), Path("runs/not_there"))


@cache
def sizes(name: str) -> Sizes:
    return Sizes.of(planned(name))


def arms(name: str) -> dict[str, Cost]:
    return costs.by_arm(planned(name), sizes(name))


def total(name: str) -> Cost:
    return sum(arms(name).values(), Cost())


def header(name: str) -> str:
    lines = (folder("configs") / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def price(name: str) -> tuple[str, float]:
    found = COST.search(header(name))
    assert found, f"say in {name}'s header: Costs about N GPU-hours at N images/s and GPU"
    return found[1], float(found[2].replace(",", ""))


def test_the_configs_that_were_asked_for_ship() -> None:
    assert set(SHIPPED) >= ASKED


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_plans_without_its_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, console = planned(name), Console(width=200, file=StringIO())
    for part in plan(run, throughput=1000):
        console.print(part)
    assert isinstance(console.file, StringIO)
    said = console.file.getvalue()
    weights = sum(p.numel for p in run.prunable)
    parts = [f"{weights:,}", f"{run.total:,}", f"rewind point: step {run.k} ", "GPU-hours at 1,000", "disk needed"]
    assert [part for part in parts if part not in said] == []
    assert list(tmp_path.iterdir()) == []


def survivors(run: Experiment) -> list[int]:
    """Weights that rounds 0 to R train, by the definition: each round removes the rate of what is left."""
    prune = run.config.prune
    if prune.schedule == "list":
        total = sum(p.numel for p in run.prunable)
        return [total, *(round(density * total) for density in prune.densities)]
    own = {kind: getattr(prune.rates, kind) for kind in ("conv", "fc", "output")}
    rated = [(p.numel, prune.rate if own[p.kind] is None else own[p.kind]) for p in run.prunable]
    if prune.scope == "global":
        pooled = sum(numel for numel, rate in rated if rate)
        rated = [(pooled, prune.rate), (sum(numel for numel, _ in rated) - pooled, 0)]
    left, found = [numel for numel, _ in rated], []
    for _ in range(prune.rounds + 1):
        found.append(sum(left))
        left = [count - round(rate * count) for count, (_, rate) in zip(left, rated, strict=True)]
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_every_round_trains_what_the_rates_leave(name: str) -> None:
    run, left = planned(name), survivors(planned(name))
    assert [step.kept for step in run.plan] == left
    assert [step.density for step in run.plan] == [kept / left[0] for kept in left]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_header_says_what_to_type_to_expect_and_to_pay(name: str) -> None:
    said = header(name)
    assert f"lth run {name} " in said + " "
    assert re.search("Expect|The paper:|tickets", said)
    assert re.search(r"\b[Cc]ost|minutes", said)
    assert len(said.splitlines()) <= 14 and max(map(len, said.splitlines())) <= 125


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in TIMED])
def test_the_price_in_a_header_is_the_plans(name: str) -> None:
    hours, throughput = price(name)
    assert hours == f"{total(name).hours(throughput):,.0f}"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_docs_table_has_a_row_for_every_config(name: str) -> None:
    rows = re.findall(rf"^\| \[`{name}`\]\(\.\./configs/{name}\.yaml\) \|.*$", DOCS.read_text(), re.MULTILINE)
    assert len(rows) == 1
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    run = planned(name)
    assert cells[1:5] == [
        f"{run.config.model.name} on {run.config.data.name}",
        run.config.rewind.at,
        f"{run.plan[-1].round}, to {100 * run.plan[-1].density:.1f} %",
        f"{len(run.config.run.replicates)}: {', '.join(run.config.run.arms)}",
    ]
    if name not in TIMED:
        assert cells[5].startswith(f"{price(name)[0]} ")


# --- published counts -------------------------------------------------------------------------------------------------

CONVOLUTIONS = 23_454_912  # of ResNet-50, as the public 18-round curve counts them
BLOCK = 384 * 3 * 384 + 384 * 384 + 2 * 384 * 4 * 384  # of ViT-S: qkv, projection and two linear layers
SMALL_VIT = {"patch_embed": 384 * 3 * 16 * 16, "blocks": 12 * BLOCK, "head": 384 * 1000}


def kinds(name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in planned(name).prunable:
        found[tensor.kind] = found.get(tensor.kind, 0) + tensor.numel
    return found


def fixed(name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in models.unprunable(planned(name).model(0)):
        found[tensor.reason] = found.get(tensor.reason, 0) + tensor.numel
    return found


def parameters(name: str) -> int:
    return sum(p.numel() for p in planned(name).model(0).parameters())


@pytest.mark.parametrize("name", ["imagenet_resnet50", "imagenet_resnet50_cosine"])
def test_resnet50(name: str) -> None:
    assert parameters(name) == 25_557_032  # torchvision's and timm's count
    assert kinds(name) == {"conv": CONVOLUTIONS, "output": 2_048_000}
    assert fixed(name) == {"norm layer": 53_120, "bias": 1_000}
    assert CONVOLUTIONS + 2_048_000 + 53_120 + 1_000 == 25_557_032


@pytest.mark.parametrize("name", ["imagenet_vit_small", "imagenet_deit_small"])
def test_small_vits(name: str) -> None:
    assert parameters(name) == 22_050_664  # timm's count
    assert sum(kinds(name).values()) == sum(SMALL_VIT.values()) == 21_912_576
    assert kinds(name)["output"] == SMALL_VIT["head"] and kinds(name)["conv"] == SMALL_VIT["patch_embed"]
    assert fixed(name) == {
        "position embedding": 197 * 384,
        "class or register token": 384,
        "norm layer": 25 * 2 * 384,
        "bias": 384 + 12 * (3 * 384 + 384 + 4 * 384 + 384) + 1000,
    }
    names = [tensor.name for tensor in planned(name).prunable]
    assert [part for part in names if "qkv" in part] == [f"blocks.{block}.attn.qkv.weight" for block in range(12)]
    assert [part for part in names if not part.endswith("weight") or "norm" in part] == []


@pytest.mark.parametrize(
    ("name", "all_parameters", "convolutions"),
    [
        ("cifar10_vgg16", None, 14_714_688 - 4_224),  # torchvision's vgg16.features without its biases
        ("cifar100_resnet18", 11_220_132, None),  # pytorch-cifar100's 11.2M; 11,173,962 with 10 classes
        ("cifar10_resnet20", 272_474, 270_256 - 2_560),  # the paper's shortcuts are not pruned
    ],
)
def test_cifar_networks(name: str, all_parameters: int | None, convolutions: int | None) -> None:
    assert all_parameters is None or parameters(name) == all_parameters
    assert convolutions is None or kinds(name)["conv"] == convolutions


PAPER = {  # round -> percent of the weights left, where the paper gives results at just that density
    "fashion_mnist_lenet": {7: 21.1, 9: 13.5, 15: 3.6},
    "cifar10_conv2": {11: 8.8},
    "cifar10_conv4": {12: 9.2},
    "cifar10_conv6": {10: 15.3},  # 15.1 in the paper, which counts 1.7M weights where its own description has 2.26M
    "imagenet_resnet50": {3: 51.2, 6: 26.2, 7: 21.0, 9: 13.4, 10: 10.7},
}


@pytest.mark.parametrize("name", PAPER)
def test_densities_are_the_papers(name: str) -> None:
    found = {number: round(100 * planned(name).plan[number].density, 1) for number in PAPER[name]}
    assert found == PAPER[name]


def test_the_cosine_curve_has_the_published_numbers_of_weights() -> None:
    published = {0: 23_454_912, 1: 18_764_028, 2: 15_011_282, 9: 3_148_156, 18: 422_542}
    kept = {number: planned("imagenet_resnet50_cosine").plan[number].kept - 2_048_000 for number in published}
    assert kept == pytest.approx(published, rel=1e-4)  # theirs come from a threshold in float32


# --- costs ------------------------------------------------------------------------------------------------------------


def test_resnet50_costs_what_pencil_and_paper_say() -> None:
    run, per_hour = planned("imagenet_resnet50"), 2_500 * 3_600
    assert run.steps_per_epoch == 1_281_167 // 1024 == 1_251
    dense = 90 * 1_251 * 1_024 + (18 * 50_000 + 3 * 5_000) / 3  # test every 5 epochs, 5,000 train images at the thirds
    later = 85 * 1_251 * 1_024 + (17 * 50_000 + 3 * 5_000) / 3
    found = arms("imagenet_resnet50")
    assert list(found) == ["dense", "ticket"]
    assert found["dense"].hours(2_500) == pytest.approx(3 * dense / per_hour)
    assert found["ticket"].hours(2_500) == pytest.approx(3 * 10 * later / per_hour)
    assert found["dense"].hours(2_500) == found["dense"].hours_from_zero(2_500)
    assert found["ticket"].hours_from_zero(2_500) == pytest.approx(3 * 10 * dense / per_hour)
    assert total("imagenet_resnet50").hours(5_000) == total("imagenet_resnet50").hours(2_500) / 2
    alone = costs.chain(run, sizes("imagenet_resnet50"))
    assert alone.hours(2_500) == pytest.approx((dense + 10 * later) / per_hour) and alone.rounds == 11


def test_the_cosine_curve_saves_a_quarter_of_every_later_round() -> None:
    ticket = arms("imagenet_resnet50_cosine")["ticket"]
    assert ticket.trained == 3 * 18 * 48_000 * 2_048
    assert ticket.hours(1) / ticket.hours_from_zero(1) == pytest.approx(48 / 64, abs=0.001)


def test_only_arms_that_start_at_k_save() -> None:
    found = arms("cifar10_resnet20")
    assert set(found) == {"dense", "ticket", "reinit", "random"}
    assert found["ticket"].trained == found["random"].trained == 5 * 12 * 62_500 * 128
    assert found["reinit"].trained == 5 * 12 * 63_000 * 128  # a new initialisation trains from step 0
    assert found["reinit"].hours(1) == found["reinit"].hours_from_zero(1)
    assert found["ticket"].hours(1) < found["ticket"].hours_from_zero(1)


def test_evaluation_is_counted() -> None:
    """Conv-2: 5,000 validation images every 100 of 20,000 steps; 10,000 of test and 5,000 of train at the end."""
    assert arms("cifar10_conv2")["dense"].evaluated == 5 * (200 * 5_000 + 15_000)


def test_storage_of_the_chain() -> None:
    """fp32 weights and buffers of every round's end, a bit a weight of masks, theta_0 and theta_k with momentum."""
    values = 25_557_032 + 53_120  # parameters, running means and variances
    state, momentum = 4 * values + 8 * 53, 4 * 25_557_032  # each of 53 BatchNorms counts its batches in an int64
    mask = (CONVOLUTIONS + 2_048_000) / 8
    found = arms("imagenet_resnet50")
    assert found["dense"].stored == 3 * (state + mask + 2 * state + momentum)
    assert found["ticket"].stored == 3 * 10 * (state + mask)
    assert sizes("imagenet_resnet50").peak == 2 * (state + momentum)


def test_a_restarted_schedule_saves_nothing_and_a_kept_optimizer_is_stored() -> None:
    words = ["cifar10_resnet20", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=1"]
    found = {}
    for recipe in ("continue", "restart", "lr_rewinding"):
        run = Experiment.at(settings.parse([*words, f"--rewind.recipe={recipe}"]), Path("runs/not_there"))
        found[recipe] = costs.by_arm(run, Sizes.of(run))["ticket"]
    assert found["restart"].trained == 63_000 * 128 and found["continue"].trained == 62_500 * 128
    assert found["lr_rewinding"].stored - found["continue"].stored == 4 * 272_474


# --- drop path --------------------------------------------------------------------------------------------------------


def dropping(name: str, rate: float) -> list[float]:
    network = models.build(config.Model(name, drop_path=rate, init="own"), (3, 224, 224), 10, 0)
    return [part.drop_prob for part in network.modules() if type(part).__name__ == "DropPath"]  # type: ignore[misc]


def test_drop_path_rises_from_block_to_block() -> None:
    rates = dropping("timm:deit_tiny_patch16_224", 0.1)
    assert len(rates) == 2 * 11 and rates == sorted(rates) and rates[-1] == pytest.approx(0.1)
    assert dropping("timm:deit_tiny_patch16_224", 0.0) == []


@pytest.mark.parametrize("name", ["resnet20", "lenet_300_100", "timm:vgg11"])
def test_drop_path_is_refused_by_models_that_take_none(name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.drop_path=0\.1 is only for .*model\.name='{name}' takes none"):
        dropping(name, 0.1)
