"""Training batches through FFCV, our torch loader, torchvision alone and FFCV's own loader.

``python benchmarks/loaders.py`` makes 2000 JPEGs like ImageNet's in a temporary folder, writes them
as .beton files, and lets the loaders take turns, so that whatever else the machine does slows all.
All draw crops alike (both of our loaders the very same). Reported: medians, and the median of
paired ratios; the target is 5 x torchvision. Everything is in the page cache.

What a loader has to do is set by how many pixels and bytes there are to decode. The pictures follow
ImageNet-1K's train split: 1.281 million files in 147.9 GB, most of them 500 pixels wide and of
quality 96 without chroma subsampling. FFCV's documentation (benchmarks, dataset sizes) gives its
sizes as .beton: 789 GB raw (sides up to 1600 pixels); with sides up to 512 pixels 616 GB raw, and
65 GB as JPEGs of quality 90. Per image that is

============================  ========  ============
mean of an image              ImageNet  the pictures
============================  ========  ============
pixels                        205,000   205,000
JPEG file                     115 kB    110 kB
pixels, side at most 512      160,000   167,000
the same as JPEG, quality 90  51 kB     56 kB
============================  ========  ============

Needs FFCV: bash scripts/install_ffcv.sh
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import count, islice
from pathlib import Path

import ffcv
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.turns import median_ratio, take_turns, timed
from mrl.config import DataConfig, DatasetName, LoaderName
from mrl.data import Loader, build_loader, image_folder, load_splits
from mrl.data.ffcv_loader import AHEAD
from mrl.data.ffcv_writer import WriteSettings, write_split

CLASSES = 10
SIZES = {(1000, 750): 0.07, (500, 375): 0.77, (240, 180): 0.16}  # width and height: their share
SLOPE = 1.5  # a picture's amplitudes fall as frequency ** -SLOPE; with the next two lines its bytes
CONTRAST = (60, 10, 10)  # are ImageNet's: grey levels, standard deviation of Y, Cb and Cr
SOURCE_JPEG = {"quality": 95, "subsampling": "4:4:4"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD = AHEAD + 2  # batches
PROBABILITIES = (0.0, 0.5, 1.0)  # of JPEG in the .beton file; the paper's is 0.5
Batches = Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor]]]  # of an epoch


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(dir=args.tmp) as temporary:
        root = Path(temporary)
        make_pictures(root / "pictures", args.images)
        files = [p.stat().st_size for p in (root / "pictures" / "train").glob("*/*")]
        size = statistics.mean(files) / 1e3
        print(f"{len(files)} JPEGs of {size:.0f} kB, batches of {args.batch_size}")
        print(f"{args.workers} workers, {args.rounds} rounds")
        scanned = image_folder.scan(root / "pictures")
        for probability in PROBABILITIES:
            (root / f"{probability}").mkdir()
            for name, split in zip(("train", "val"), scanned, strict=True):
                path = root / f"{probability}" / f"{name}.beton"
                settings = WriteSettings(jpeg_probability=probability)
                write_split(path, split, settings, workers=args.workers, skip_corrupt=False)
        for size in args.sizes:
            report(root, size, args)


def report(root: Path, size: int, args: argparse.Namespace) -> None:
    loaders = {
        "torchvision": torchvision_batches(root / "pictures", size, args),
        "data.loader=torch": make_loader(root / "pictures", "torch", size, args).batches,
    }
    for probability in PROBABILITIES:
        folder = root / f"{probability}"
        for name, batches in (
            ("data.loader=ffcv", make_loader(folder, "ffcv", size, args).batches),
            ("ffcv.Loader", ffcv_batches(folder, size, args)),
        ):
            loaders[f"{name}, {probability:.0%} JPEG"] = batches
    cases = {name: epoch_after_epoch(batches) for name, batches in loaders.items()}
    for batches in loaders.values():
        warm_up(batches)
    speeds = take_turns(cases, args.rounds, warmup=0)
    for name, measured in speeds.items():
        ratio = median_ratio(measured, speeds["torchvision"])
        speed = statistics.median(measured)
        print(f"{size} px  {name:27}  {speed:6.0f} images/s  {ratio:5.2f} x torchvision")


def torchvision_batches(root: Path, size: int, args: argparse.Namespace) -> Batches:
    """What one would write with torchvision alone."""
    usual = [
        transforms.RandomResizedCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    loader = DataLoader(
        ImageFolder(root / "train", transforms.Compose(usual)),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        pin_memory=torch.cuda.is_available(),
    )
    return lambda epoch: iter(loader)


def ffcv_batches(root: Path, size: int, args: argparse.Namespace) -> Batches:
    """What one would write with FFCV alone; its batches are overwritten later."""
    loader = ffcv.loader.Loader(
        str(root / "train.beton"),
        batch_size=args.batch_size,
        num_workers=args.workers,
        order=ffcv.loader.OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [
                ffcv.fields.rgb_image.RandomResizedCropRGBImageDecoder((size, size)),
                ffcv.transforms.RandomHorizontalFlip(),
                # On the CPU before ToTensor: after it, FFCV's compilation does not end.
                ffcv.transforms.NormalizeImage(
                    255 * np.array(MEAN), 255 * np.array(STD), np.float32
                ),
                ffcv.transforms.ToTensor(),
                ffcv.transforms.ToTorchImage(),
            ],
            "label": [
                ffcv.fields.basics.IntDecoder(),
                ffcv.transforms.ToTensor(),
                ffcv.transforms.Squeeze(),
            ],
        },
    )
    return lambda epoch: iter(loader)


def warm_up(batches: Batches) -> None:
    """Compile, and hold as many batches at once as a training that is slower than its loader.

    Else some of the memory that loaders use again would be new, and slow, in a later round.
    """
    list(islice(batches(0), HELD))


def epoch_after_epoch(batches: Batches) -> Callable[[], float]:
    """Images per second of the next epoch, each time that it is called."""
    epochs = count()

    def images_per_second() -> float:
        epoch = batches(next(epochs))
        seconds, num_images = timed(lambda: sum(len(images) for images, _ in epoch))
        return num_images / seconds

    return images_per_second


def make_loader(root: Path, name: str, size: int, args: argparse.Namespace) -> Loader:
    cfg = DataConfig(
        name=DatasetName["imagefolder"],
        root=str(root),
        image_size=size,
        holdout=0,
        flip=True,
        workers=args.workers,
        loader=LoaderName[name],
    )
    splits = load_splits(cfg)
    return build_loader(
        splits.train,
        cfg=cfg,
        pixels=splits.pixels,
        batch_size=args.batch_size,
        train=True,
        seed=0,
    )


def make_pictures(root: Path, num_train: int) -> None:
    random = np.random.default_rng(0)
    sizes = list(SIZES)
    for split, images in (("train", num_train), ("val", CLASSES)):
        for number in range(images):
            folder = root / split / f"n{number % CLASSES:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            width, height = sizes[random.choice(len(sizes), p=list(SIZES.values()))]
            levels = [128 + std * texture(random, height, width) for std in CONTRAST]
            planes = [Image.fromarray(level.clip(0, 255).astype(np.uint8)) for level in levels]
            picture = Image.merge("YCbCr", planes).convert("RGB")
            picture.save(folder / f"{number:06d}.JPEG", **SOURCE_JPEG)


def texture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise (height, width) with a photograph's spectrum; mean 0, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no constant part
    noise = random.standard_normal((height, width), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(noise) * frequency**-SLOPE, s=(height, width))
    return field / field.std()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 224])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tmp", help="where the temporary folder goes (needs 2.5 GB)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
