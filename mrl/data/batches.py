"""Which images every rank sees at every step, and random numbers that depend on nothing else.

Nothing here has state: a run that is stopped and resumed in the middle of an epoch, and a run that
is spread over ranks, see what one uninterrupted process would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrl.data.errors import DataError


def mix(*key: int) -> int:
    """64 bits that are a function of the key, such as (seed, epoch, step), alone."""
    # SeedSequence mixes the key, so that neighbouring seeds and epochs give unrelated streams. It
    # pads with zeros: without the length, (1, 2) and (1, 2, 0) would be one key.
    return int(np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0])


def generator(*key: int) -> torch.Generator:
    """Random numbers that are a function of the key alone."""
    return torch.Generator().manual_seed(mix(*key) >> 1)  # to fit in a signed 64-bit integer


@dataclass(kw_only=True, slots=True, frozen=True)
class BatchPlan:
    """The split of a data set into batches.

    Training: a new order each epoch; each global batch is split evenly over the ranks, and the
    images left over at the end are dropped. Otherwise: the data set's order, every image once; each
    rank has one contiguous part, which may take it one step fewer or more than the other ranks.

    Raises:
        DataError: if there are too few images, or a batch cannot be split evenly.
    """

    num_images: int
    batch_size: int  # global: over all ranks
    train: bool
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} is not one of {self.world_size} ranks")
        if self.batch_size < 1:
            raise DataError(f"the batch size must be at least 1, got {self.batch_size}")
        if self.num_images < 1:
            raise DataError("the data set is empty (for the holdout split: data.holdout is 0)")
        if self.train and self.batch_size % self.world_size:
            raise DataError(
                f"a batch of {self.batch_size} cannot be split evenly over {self.world_size} "
                f"ranks: use a multiple of {self.world_size}"
            )
        if self.train and self.batch_size > self.num_images:
            raise DataError(
                f"a batch of {self.batch_size} is larger than the training set of "
                f"{self.num_images} images: use a smaller batch or a smaller data.holdout"
            )

    @property
    def steps(self) -> int:
        """Batches per epoch; without training, of this rank."""
        if self.train:
            return self.num_images // self.batch_size
        return -(-len(self._own()) // self.per_rank)

    @property
    def part(self) -> slice:
        """This rank's rows of a global training batch."""
        return slice(self.rank * self.per_rank, (self.rank + 1) * self.per_rank)

    def indices(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
        """(step, this rank's image indices (N,) int64), from step ``start`` on."""
        order = self._order(epoch)
        for step in range(start, self.steps):
            if self.train:
                batch = order[step * self.batch_size : (step + 1) * self.batch_size][self.part]
            else:
                batch = order[step * self.per_rank : (step + 1) * self.per_rank]
            yield step, batch

    @property
    def per_rank(self) -> int:
        """Images of this rank in a batch; of the last one in evaluation perhaps fewer."""
        return -(-self.batch_size // self.world_size)

    def _own(self) -> range:
        bounds = [self.num_images * r // self.world_size for r in (self.rank, self.rank + 1)]
        return range(*bounds)

    def _order(self, epoch: int) -> Tensor:
        """Of all images when training, else of this rank's."""
        if self.train:
            return torch.randperm(self.num_images, generator=generator(self.seed, epoch))
        return torch.arange(self._own().start, self._own().stop)
