"""Progressive resizing: train on small images first and on larger ones later (paper, Appendix C).

A pure function of the epoch, so that a resumed run trains on the sizes of an uninterrupted one.
"""

from collections.abc import Sequence

MULTIPLE = 32  # sizes between the two ends are rounded to it, as networks halve sides five times


def train_size(
    epoch: int,
    *,
    image_size: int,
    train_sizes: Sequence[int] | None,
    ramp_epochs: Sequence[int] | None,
) -> int:
    """Side in pixels of the training images in ``epoch``, which counts from 0.

    Args:
        train_sizes: (first, last); None: ``image_size`` throughout.
        ramp_epochs: (a, b): the first size up to and with epoch a, the last from epoch b on, and in
            between a straight line rounded to multiples of 32.
    """
    if train_sizes is None or ramp_epochs is None:
        return image_size
    (first, last), (begin, end) = train_sizes, ramp_epochs
    if epoch <= begin:
        return first
    if epoch >= end:
        return last
    exact = first + (last - first) * (epoch - begin) / (end - begin)
    return min(max(round(exact / MULTIPLE) * MULTIPLE, min(first, last)), max(first, last))
