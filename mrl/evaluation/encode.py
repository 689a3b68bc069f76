"""Images to embeddings, batch by batch, with the GPU kept busy.

Shapes: N images of a batch, D embedding width.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mrl.model import MRLModel

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W) and labels (N,), on the CPU


@torch.inference_mode()
def encoded(model: MRLModel, batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """(embeddings float32 (N, D), labels (N,)) of every batch in turn, on the CPU.

    In float32 proper: cuDNN's TF32, with float16's 10 bits, makes near neighbours tie.

    Args:
        model: on ``device``, in eval mode.
    """
    if device.type != "cuda":
        for images, labels in batches:
            yield model.encode(images.to(device)).float().cpu(), labels
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield from _encoded_on_gpu(model, batches, device)


def _encoded_on_gpu(
    model: MRLModel, batches: Iterable[Batch], device: torch.device
) -> Iterator[Batch]:
    """Hands out a batch when the next is already queued, so that the GPU never waits for us."""
    waiting: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
    for images, labels in _uploaded(batches, device):
        z_ND = model.encode(images).float()
        host_ND = torch.empty(z_ND.shape, pin_memory=True)
        host_ND.copy_(z_ND, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        if waiting is not None:
            waiting[2].synchronize()
            yield waiting[:2]
        waiting = host_ND, labels, copied
    if waiting is not None:
        waiting[2].synchronize()
        yield waiting[:2]


def _uploaded(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their images on the GPU; a thread loads and copies one ahead."""
    iterator = iter(batches)
    side = torch.cuda.Stream(device)

    def load() -> tuple[Tensor, Tensor, torch.cuda.Event] | None:
        batch = next(iterator, None)
        if batch is None:
            return None
        with torch.inference_mode(), torch.cuda.stream(side):
            images = batch[0].pin_memory().to(device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(side)
        return images, batch[1], arrived

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(load)
        while (loaded := ahead.result()) is not None:
            ahead = pool.submit(load)
            images, labels, arrived = loaded
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            images.record_stream(current)  # else its memory might be reused while it is read
            yield images, labels
