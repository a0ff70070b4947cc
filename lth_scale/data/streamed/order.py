"""The order of streamed samples: a pure function of (order seed, noise, epoch), laid out in lanes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lth_scale.data.streamed.samples import Column
from lth_scale.errors import UserError
from lth_scale.streams import numpy_generator


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def check_lanes(lanes: int, batch: int) -> None:
    """Raise UserError naming data.lanes and train.batch_size unless the lanes divide the global batch."""
    if batch % lanes:
        raise UserError(
            f"data.lanes={lanes} does not divide train.batch_size={batch}; "
            f"valid values of data.lanes: {_listed(_divisors(batch))}"
        )


def rank_rows(rank: int, world: int, lanes: int, batch: int) -> slice:
    """Which columns of a global batch a rank serves: those of lanes/world whole lanes.

    Raises UserError, naming the keys and the valid values, unless world divides lanes and lanes divides batch.
    """
    check_lanes(lanes, batch)
    if lanes % world:
        raise UserError(
            f"data.lanes={lanes} is not a multiple of {world} devices (hardware.devices x hardware.nodes); "
            f"valid numbers of devices: {_listed(_divisors(lanes))}"
        )
    return slice(rank * batch // world, (rank + 1) * batch // world)


def _ranked(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    # Raw Philox words are the same in every version of NumPy; those of Generator.permutation need not be.
    return np.argsort(words, axis=-1, kind="stable")


def _sit_out(generator: np.random.Generator, samples: int, count: int) -> npt.NDArray[np.bool_]:
    stays = np.ones(samples, np.bool_)
    if count:
        words = generator.bit_generator.random_raw(samples)
        stays[np.argpartition(words, count - 1)[:count]] = False
    return stays


def _by_shard(generator: np.random.Generator, shard: Column) -> Column:
    """All sample numbers, shards in a random order, samples of one shard in theirs."""
    pieces = np.split(np.arange(len(shard), dtype=np.int64), np.flatnonzero(np.diff(shard)) + 1)
    return np.concatenate([pieces[i] for i in _ranked(generator.bit_generator.random_raw(len(pieces)))])


def _shuffle_blocks(generator: np.random.Generator, lanes: Column, window: int) -> None:
    """Shuffle each row within consecutive blocks of ``window`` columns, in place."""
    count, length = lanes.shape
    whole = length - length % window
    for part, width in ((lanes[:, :whole], window), (lanes[:, whole:], length - whole)):
        if part.size:
            # A copy, as columns cut out of a row are no blocks that could be reshaped in place.
            blocks = part.reshape(count, -1, width)
            words = generator.bit_generator.random_raw(blocks.size).reshape(blocks.shape)
            part[:] = np.take_along_axis(blocks, _ranked(words), axis=-1).reshape(part.shape)


def epoch_order(order: int, noise: int, epoch: int, shard: Column, lanes: int, batch: int, window: int) -> Column:
    """The sample numbers of an epoch's global batches: int64 [steps, batch], each row lane after lane.

    The shards in a random order, end to end, are cut into ``lanes`` equal lanes; each lane is shuffled within
    consecutive blocks of ``window`` samples; each global batch takes batch / lanes samples from every lane. Of N
    samples, N modulo ``batch`` sit out, drawn anew each epoch.

    Args:
        order: the order stream's seed.
        noise: 0, or another number for another order of the same seed.
        epoch: which epoch.
        shard: int64 [N], each sample's shard; the samples of one shard follow one another.
        lanes: parts of the epoch that are read side by side; divides batch.
        batch: samples of a global batch, at most N.
        window: samples of a block.

    Raises UserError unless lanes divides batch.
    """
    check_lanes(lanes, batch)
    generator = numpy_generator(order, "order", noise, epoch)
    samples = _by_shard(generator, shard)
    steps = len(shard) // batch
    samples = samples[_sit_out(generator, len(shard), len(shard) % batch)].reshape(lanes, -1)
    _shuffle_blocks(generator, samples, window)
    return np.ascontiguousarray(samples.reshape(lanes, steps, -1).transpose(1, 0, 2)).reshape(steps, batch)
