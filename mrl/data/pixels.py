"""How a picture becomes a network's input: normalisation, evaluation's crop, and interpolation.

Weights want such pixels as they were trained on, so these values belong to the weights wherever a
run starts from some, and otherwise to the data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mrl.data.crops import EVAL_SHARE

if TYPE_CHECKING:  # mrl.config needs Hydra; loading data does not
    from mrl.config import DataConfig

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's


@dataclass(kw_only=True, slots=True, frozen=True)
class Pixels:
    """What is done to pixels, besides random crops and mirroring."""

    mean: tuple[float, ...]  # of each channel, pixels scaled to 0..1
    std: tuple[float, ...]
    # Of pictures in files; a data set that is kept in memory has its size already.
    crop_ratio: float = EVAL_SHARE  # side of evaluation's square, of the picture's shorter side
    interpolation: str = "bilinear"  # with data.loader=torch; FFCV averages over areas

    def to_dict(self) -> dict[str, Any]:
        """Lists, strings and numbers: for checkpoints and JSON."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Pixels":
        """Of what :meth:`to_dict` gave; what older versions did not note has its default."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def for_channels(self, count: int) -> "Pixels":
        """The same for images of ``count`` channels: their average, where numbers differ.

        timm's weights take images of one channel by summing the filters over the colours.
        """
        if len(self.mean) == count:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * count, std=(std,) * count)

    def overridden(self, cfg: "DataConfig") -> "Pixels":
        """With the values that the configuration gives."""
        mean, std = (given and tuple(given) for given in (cfg.mean, cfg.std))
        return Pixels(
            mean=mean or self.mean,
            std=std or self.std,
            crop_ratio=cfg.crop_ratio or self.crop_ratio,
            interpolation=cfg.interpolation or self.interpolation,
        )

    def __str__(self) -> str:
        return (
            f"mean {_shown(self.mean)}, std {_shown(self.std)}, crop {self.crop_ratio:.4g}, "
            f"{self.interpolation}"
        )


def _shown(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
