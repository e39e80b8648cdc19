"""The settings of multiple-instance heads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pyhisto.errors import ConfigError

__all__ = ["HeadSettings", "PromptSettings"]


@dataclass(frozen=True)
class PromptSettings:
    """The frozen transformer of ``prompt-mil`` and its prompt; as given, ViT-S/16 on tiles of 224 px.

    Parameters
    ----------
    weights
        A file with the state dict of the transformer, under the names of timm and DINO or of MONAI; ``"random"`` for
        random weights, which only tests want. It has to be given.
    head
        The head on the features of the tiles, a name of :data:`pyhisto.models.mil.HEADS`.
    length
        Tokens of the prompt.
    tile_px, patch_px
        Side of the tiles and of the patches that become tokens, px.
    width, layers, heads
        Of the transformer: numbers per token, blocks, and heads of each block.
    mean, std
        Of the colours (red, green, blue; 0 to 1) that the transformer was trained with; ImageNet's.
    at_once
        Tiles that go through the transformer together; memory grows with it.

    Raises
    ------
    ConfigError
        If a value is out of range, or sizes do not divide.
    """

    weights: str = ""
    head: str = "abmil"
    length: int = 1
    tile_px: int = 224
    patch_px: int = 16
    width: int = 384
    layers: int = 12
    heads: int = 6
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    at_once: int = 64

    def __post_init__(self) -> None:
        for name in ("length", "tile_px", "patch_px", "width", "layers", "heads", "at_once"):
            if getattr(self, name) < 1:
                raise ConfigError(f"prompt {name} is {getattr(self, name)}", expected="1 or more")
        for whole, part in (("tile_px", "patch_px"), ("width", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"prompt {whole} is {getattr(self, whole)}",
                    expected=f"a multiple of {part}, {getattr(self, part)}",
                )
        if min(self.std) <= 0:
            raise ConfigError(f"prompt std is {self.std}", expected="more than 0")


@dataclass(frozen=True)
class HeadSettings:
    """What can be said of a head; ``None`` stands for the head's own value.

    Parameters
    ----------
    hidden
        Width to which a first layer with a ReLU brings the instances; 0 for no such layer, whose linear scores find
        rare instances much less reliably. ``None``: 512, and 0 for ``max`` and ``mean``. ``transmil`` cannot do
        without; the paper of ``dsmil`` has none.
    attention
        Width of the attention network. ``None``: 128 for ``abmil`` and ``dsmil``, 256 for ``clam-*``.
    dropout
        Share of the activations dropped in training. ``None``: 0.25 for ``clam-*``, 0.1 for ``transmil``, else 0.
    clustered
        ``clam-*``: how many instances with the highest and with the lowest attention are clustered (B in the paper).
    bag_weight
        ``clam-*``: weight of the bag loss; the clustering loss has the rest (c1 and c2 in the paper).
    exclusive
        ``clam-*``: whether a bag also teaches the clusters of the classes it has not; for subtypes, of which a slide
        has one, and not for tumour and normal.
    prompt
        ``prompt-mil``: its transformer and its prompt.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    hidden: int | None = None
    attention: int | None = None
    dropout: float | None = None
    clustered: int = 8
    bag_weight: float = 0.7
    exclusive: bool = False
    prompt: PromptSettings = field(default_factory=PromptSettings)

    def __post_init__(self) -> None:
        checks = (
            ("hidden", self.hidden, self.hidden is None or self.hidden >= 0, "0 or more"),
            ("attention", self.attention, self.attention is None or self.attention >= 1, "1 or more"),
            ("dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1"),
            ("clustered", self.clustered, self.clustered >= 1, "1 or more"),
            ("bag_weight", self.bag_weight, 0 <= self.bag_weight <= 1, "from 0 to 1"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise ConfigError(f"{name} is {value}", expected=expected)

    def without_files(self) -> HeadSettings:
        """Return the settings with which to build a head whose ``state_dict`` is at hand, frozen weights and all."""
        return replace(self, prompt=replace(self.prompt, weights="random")) if self.prompt.weights else self
