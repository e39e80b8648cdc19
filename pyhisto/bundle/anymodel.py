"""Any model folder: a bundle of this project, a MONAI bundle of the model zoo's layout, or a WSInfer model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pyhisto.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from pyhisto.bundle.foreign.models import HoverModel, TileModel
    from pyhisto.bundle.loaded import Bundle

    AnyModel: TypeAlias = Bundle | TileModel | HoverModel

__all__ = ["load_model"]

MPP_RANGE = (0.02, 100.0)


def load_model(
    folder: str | Path,
    *,
    device: str = "cpu",
    precision: str = "auto",
    engine: str = "auto",
    mpp: float | None = None,
    class_names: Sequence[str] = (),
) -> AnyModel:
    """Load whatever model a folder holds.

    Of a foreign model the sha256 is that of its file of weights; no golden tile says whether it computes here what it
    computed where it was made. A TorchScript file (``model.ts``, ``torchscript_model.pt``) is code that runs with the
    rights of the user. Nothing is downloaded, and no expression of a configuration is evaluated.

    Parameters
    ----------
    folder
        The model.
    device, precision, engine
        As for :func:`pyhisto.bundle.files.load_bundle`; foreign models run in float32 by torch.
    mpp
        µm/px of the network's input, where the folder does not say it: MONAI bundles have no place for it.
    class_names
        Names of the output channels of a MONAI bundle in place of its own; of a HoVer-Net those of its types of nuclei,
        without background.

    Returns
    -------
    Bundle, TileModel or HoverModel
        By the kind of the model: ``tissue_segmentation`` and ``cell_detection`` are bundles, ``tile_classification``
        is a TileModel, ``nucleus_segmentation`` a HoverModel.

    Raises
    ------
    BundleError
        If the folder is none of the three, damaged, or does something that is not reproduced here.
    ConfigError
        If this machine does not have the device, or an option does not apply to the model.
    """
    from pyhisto.bundle.files import load_bundle
    from pyhisto.bundle.foreign.monaibundle import read_monai
    from pyhisto.bundle.foreign.wsinfer import read_wsinfer

    folder = Path(folder)
    layout = _layout(folder)
    if layout != "monai" and (mpp is not None or class_names):
        raise ConfigError(
            f"--model-mpp or --model-classes for {folder}, which says its µm/px and classes itself",
            remedy="leave them out",
        )
    if layout == "own":
        return load_bundle(folder, device=device, precision=precision, engine=engine)
    _check_plain(folder, device, precision, engine)
    model: AnyModel
    if layout == "wsinfer":
        model = read_wsinfer(folder, device=device)
    elif mpp is None:
        raise BundleError(
            f"{folder}: a MONAI bundle does not say the µm/px of its input", remedy="give it with --model-mpp"
        )
    elif not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise ConfigError(f"--model-mpp {mpp:g}", expected=f"{MPP_RANGE[0]} to {MPP_RANGE[1]:g} µm/px")
    else:
        model = read_monai(folder, device=device, mpp=mpp, class_names=class_names)
    model.notes += (
        f"{model.path.name} is a foreign model ({model.spec.architecture}, sha256 {model.sha256[:12]}…): no golden "
        "tile checks what it computes",
    )
    return model


def _layout(folder: Path) -> Literal["own", "monai", "wsinfer"]:
    """Return whose layout a folder has."""
    from pyhisto.bundle.foreign.literals import read_json
    from pyhisto.bundle.foreign.monaibundle import METADATA
    from pyhisto.bundle.foreign.wsinfer import CONFIG

    if (folder / METADATA).is_file():
        return "own" if "pyhisto" in read_json(folder / METADATA) else "monai"
    if (folder / CONFIG).is_file():
        return "wsinfer"
    raise BundleError(
        f"{folder} is no model folder",
        expected=f"{METADATA} (a bundle of this project or of MONAI) or {CONFIG} (WSInfer)",
    )


def _check_plain(folder: Path, device: str, precision: str, engine: str) -> None:
    """Refuse what only a bundle with a golden tile can have checked."""
    from pyhisto.device import check_device

    check_device(device)
    if precision not in ("auto", "float32") or engine not in ("auto", "torch"):
        raise BundleError(
            f"{folder} in {precision} by {engine}: a foreign model has no golden tile to check that against",
            expected="float32 by torch",
        )
