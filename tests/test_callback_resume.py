"""PruningCallback and interrupted fits, continued from the user's own checkpoint files."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from tiny_runs import captured
from torch.optim import lr_scheduler

from lth_scale import PruningCallback
from lth_scale.errors import UserError

TESTS = Path(__file__).parent
REWIND = "8it"


class Interrupted(Exception):
    pass


def stopper(namespace: str, step: int, how: Any) -> Any:
    lightning = importlib.import_module(namespace)

    class Stop(lightning.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if trainer.global_step == step:
                how()

    return Stop()


def interrupt() -> None:
    raise Interrupted


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def saver(namespace: str, folder: Path) -> Any:
    """The user's own, every epoch."""
    callbacks = importlib.import_module(f"{namespace}.callbacks")
    return callbacks.ModelCheckpoint(dirpath=folder / "own", filename="{epoch}", save_top_k=-1)


def play(namespace: str, folder: Path, stop: tuple[int, Any] | None = None, **settings: Any) -> Any:
    """One round, perhaps interrupted before ``stop``."""
    callbacks = [PruningCallback(folder / "t", 0.5, REWIND), saver(namespace, folder)]
    if stop:
        callbacks.append(stopper(namespace, *stop))
    make = lambda: foreign.module(  # noqa: E731
        namespace, foreign.sgd, lambda o: lr_scheduler.CosineAnnealingLR(o, 4)
    )
    return foreign.fit(namespace, folder, callbacks, make, enable_checkpointing=True, max_epochs=4, **settings)


def interrupted(folder: Path) -> Path:
    """Round 0, and round 1 interrupted after k; the checkpoint to go on from."""
    play("pytorch_lightning", folder)
    for old in (folder / "own").iterdir():
        old.unlink()
    with pytest.raises(Interrupted):
        play("pytorch_lightning", folder, (20, interrupt))
    return folder / "own/epoch=2.ckpt"


def weights(module: Any) -> dict[str, torch.Tensor]:
    return captured(module, module.trainer.optimizers, 0).flat()


def assert_same(a: Any, b: Any) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def uninterrupted(namespace: str, folder: Path) -> list[Any]:
    return [play(namespace, folder) for _ in range(3)]


@pytest.mark.parametrize("namespace", foreign.NAMESPACES)
def test_an_interrupted_round_goes_on_from_the_users_checkpoint(namespace: str, tmp_path: Path) -> None:
    whole, folder = uninterrupted(namespace, tmp_path / "whole"), tmp_path / "cut"
    with pytest.raises(Interrupted):
        play(namespace, folder, (20, interrupt))  # in round 0, after k
    play(namespace, folder, ckpt_path=folder / "own/epoch=2.ckpt")
    for old in (folder / "own").iterdir():
        old.unlink()
    with pytest.raises(Interrupted):
        play(namespace, folder, (20, interrupt))
    resumed = play(namespace, folder, ckpt_path=folder / "own/epoch=2.ckpt")
    assert len(resumed.seen) == 6
    assert_same(resumed, whole[1])
    assert_same(play(namespace, folder), whole[2])
    for name in ("round_01/mask.safetensors", "round_02/mask.safetensors", "round_03/mask.safetensors"):
        assert (folder / "t" / name).read_bytes() == (tmp_path / "whole/t" / name).read_bytes()


def test_control_without_the_callback_the_resumed_round_revives_weights(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path)
    callback = PruningCallback(tmp_path / "t", 0.5, REWIND)
    plain = foreign.fit("pytorch_lightning", tmp_path, (), max_epochs=4, ckpt_path=checkpoint, make=scheduled)
    mask = callback._tickets.mask(
        1, {name: tuple(dict(plain.named_parameters())[name].shape) for name in foreign.PRUNED}
    )
    revived = sum(int(dict(plain.named_parameters())[n][~kept].count_nonzero()) for n, kept in mask.items())
    assert revived > 100


def scheduled() -> Any:
    return foreign.module("pytorch_lightning", foreign.sgd, lambda o: lr_scheduler.CosineAnnealingLR(o, 4))


def test_an_interrupted_round_can_also_start_anew(tmp_path: Path) -> None:
    whole = uninterrupted("pytorch_lightning", tmp_path / "whole")
    for stop in (4, 12):  # before and after k
        with pytest.raises(Interrupted):
            play("pytorch_lightning", tmp_path / "cut", (stop, interrupt))
    play("pytorch_lightning", tmp_path / "cut")
    with pytest.raises(Interrupted):
        play("pytorch_lightning", tmp_path / "cut", (20, interrupt))
    assert_same(play("pytorch_lightning", tmp_path / "cut"), whole[1])


def test_a_checkpoint_of_another_round_is_refused(tmp_path: Path) -> None:
    play("pytorch_lightning", tmp_path)
    with pytest.raises(
        UserError, match=r"epoch=2.ckpt has round=0, and .* has round=1; resume from a checkpoint of this"
    ):
        play("pytorch_lightning", tmp_path, ckpt_path=tmp_path / "own/epoch=2.ckpt")


def test_a_checkpoint_that_another_rewind_point_belongs_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        play("pytorch_lightning", tmp_path, (20, interrupt))
    with pytest.raises(Interrupted):  # another dense pass, in the same folder
        callbacks = [PruningCallback(tmp_path / "t", 0.5, REWIND), stopper("pytorch_lightning", 9, interrupt)]
        foreign.fit("pytorch_lightning", tmp_path, callbacks, lambda: foreign.module("pytorch_lightning", seed=5))
    with pytest.raises(UserError, match="has theta_k="):
        play("pytorch_lightning", tmp_path, ckpt_path=tmp_path / "own/epoch=2.ckpt")


def test_a_checkpoint_saved_without_the_callback_is_refused(tmp_path: Path) -> None:
    own = saver("pytorch_lightning", tmp_path)
    foreign.fit("pytorch_lightning", tmp_path, [own], make=scheduled, enable_checkpointing=True)
    play("pytorch_lightning", tmp_path / "run")
    with pytest.raises(UserError, match="saved without PruningCallback"):
        play("pytorch_lightning", tmp_path / "run", ckpt_path=tmp_path / "own/epoch=2.ckpt")


def test_a_dense_fit_begun_without_the_callback_can_get_it_until_the_rewind_point(tmp_path: Path) -> None:
    for point, folder in (("1ep", "late"), ("0", "early")):
        foreign.fit(
            "pytorch_lightning",
            tmp_path,
            [saver("pytorch_lightning", tmp_path)],
            enable_checkpointing=True,
            max_epochs=1,
        )
        settings = {"max_epochs": 2, "ckpt_path": tmp_path / "own/epoch=0.ckpt"}
        if point == "1ep":
            foreign.fit("pytorch_lightning", tmp_path, [PruningCallback(tmp_path / folder, 0.5, point)], **settings)
            assert (tmp_path / folder / "rewind/step_00000006").is_dir()
        else:
            with pytest.raises(UserError, match="training is past the rewind point 0it, which is not stored"):
                foreign.fit("pytorch_lightning", tmp_path, [PruningCallback(tmp_path / folder, 0.5, point)], **settings)


def test_a_checkpoint_with_revived_weights_is_refused(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    damaged = torch.load(path, weights_only=False)
    damaged["state_dict"]["net.first.weight"] += 1
    torch.save(damaged, path)
    with pytest.raises(RuntimeError, match=r"are not zero: .*net.first.weight"):
        play("pytorch_lightning", tmp_path, ckpt_path=path)


@pytest.mark.kill
def test_a_killed_round_goes_on_from_the_users_checkpoint(tmp_path: Path) -> None:
    whole = uninterrupted("lightning.pytorch", tmp_path / "whole")
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from pathlib import Path; from test_callback_resume import *\n"
        f"folder = Path({str(tmp_path / 'cut')!r}); play('lightning.pytorch', folder)\n"
        "[old.unlink() for old in (folder / 'own').iterdir()]\n"
        "play('lightning.pytorch', folder, (20, die))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=240)
    assert done.returncode == -signal.SIGKILL
    folder = tmp_path / "cut"
    assert not (folder / "t/round_01/result.json").exists()
    assert_same(play("lightning.pytorch", folder, ckpt_path=folder / "own/epoch=2.ckpt"), whole[1])
