"""The losses: worked out by hand, held against MONAI and torch, and blind to what nobody labelled."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss

from pyhisto.config import from_mapping
from pyhisto.dataset import IGNORED
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.losses import LOSSES, LossSettings, build_loss

LN2 = math.log(2)


def loss_of(name: str = "dice-ce", classes: int = 2, regions: tuple[tuple[int, ...], ...] = (), **options: Any) -> Any:
    return build_loss(LossSettings(name=name, **options), classes=classes, regions=regions)  # type: ignore[arg-type]


def logits_of(*pixels: tuple[float, ...]) -> torch.Tensor:
    """Return logits (1, classes, 1, pixels) whose softmax gives the probabilities of each pixel."""
    return torch.tensor(pixels).log().T[None, :, None, :].clone().requires_grad_()


def two_by_two() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a 2 x 2 image: p of class 1 is 0.75, 0.5, 0.25 and 0.5; labels 1, 0, 0 and not labelled."""
    logits = logits_of((0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (0.5, 0.5)).detach().reshape(1, 2, 2, 2)
    return logits, torch.tensor([[[1, 0], [0, IGNORED]]])


def random_batch(classes: int = 3, known: float = 1.0, outputs: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, outputs or classes, 6, 8, generator=generator)
    labels = torch.randint(0, classes, (2, 6, 8), generator=generator, dtype=torch.uint8)
    labels[torch.rand(2, 6, 8, generator=generator) >= known] = IGNORED
    return logits, labels


def weights_for(name: str, labels: torch.Tensor) -> torch.Tensor | None:
    if name != "boundary-cross-entropy":
        return None
    return 1 + 5 * torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))


def one_hot(labels: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return F.one_hot(labels.long(), classes).permute(0, 3, 1, 2).float()


# worked out by hand


def test_dice_and_cross_entropy_of_two_pixels() -> None:
    # pixel 0: p = (0.75, 0.25), label 0; pixel 1: p = (0.5, 0.5), label 1
    loss = loss_of()(logits_of((0.75, 0.25), (0.5, 0.5)), torch.tensor([[[0, 1]]]))
    entropy = -(math.log(0.75) + math.log(0.5)) / 2
    # class 0: overlap 0.75, p² 0.5625 + 0.25, target 1; class 1: overlap 0.5, p² 0.0625 + 0.25, target 1
    dice_0 = (2 * 0.75 + 1) / (0.5625 + 0.25 + 1 + 1)
    dice_1 = (2 * 0.5 + 1) / (0.0625 + 0.25 + 1 + 1)
    assert loss.item() == pytest.approx(entropy + 1 - (dice_0 + dice_1) / 2, abs=1e-6)


def test_dice_of_two_by_two() -> None:
    # class 0: overlap 0.5 + 0.75, p² 0.0625 + 0.25 + 0.5625, target 2: (2.5 + 1) / (2.875 + 1)
    # class 1: overlap 0.75, p² 0.5625 + 0.25 + 0.0625, target 1: (1.5 + 1) / (1.875 + 1)
    expected = 1 - (3.5 / 3.875 + 2.5 / 2.875) / 2
    assert loss_of("dice")(*two_by_two()).item() == pytest.approx(expected, abs=1e-6)


def test_generalised_dice_of_two_by_two() -> None:
    # weights 1 / 2² and 1 / 1²; overlaps 1.25 and 0.75; sums p + t: 1.5 + 2 and 1.5 + 1
    expected = 1 - 2 * (1.25 / 4 + 0.75) / (3.5 / 4 + 2.5)
    assert loss_of("generalised-dice")(*two_by_two()).item() == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_of_two_by_two() -> None:
    expected = -(math.log(0.75) + math.log(0.5) + math.log(0.75)) / 3
    assert loss_of("cross-entropy")(*two_by_two()).item() == pytest.approx(expected, abs=1e-6)
    weighted = -(3 * math.log(0.75) + math.log(0.5) + math.log(0.75)) / 5
    found = loss_of("cross-entropy", class_weights=(1.0, 3.0))(*two_by_two())
    assert found.item() == pytest.approx(weighted, abs=1e-6)


def test_focal_of_two_by_two() -> None:
    expected = -(0.25**2 * math.log(0.75) + 0.5**2 * math.log(0.5) + 0.25**2 * math.log(0.75)) / 3
    assert loss_of("focal")(*two_by_two()).item() == pytest.approx(expected, abs=1e-6)


def test_boundary_weights_of_two_by_two() -> None:
    weights = torch.tensor([[[1.0, 11.0], [1.0, 500.0]]])  # 500 where nobody labelled
    expected = -(math.log(0.75) + 11 * math.log(0.5) + math.log(0.75)) / 13
    logits, labels = two_by_two()
    assert loss_of("boundary-cross-entropy")(logits, labels, weights).item() == pytest.approx(expected, abs=1e-6)
    # Ronneberger 2015, equation 2: the weight of the class takes the place of the 1 and does not scale the rest
    expected = -(3 * math.log(0.75) + 11 * math.log(0.5) + math.log(0.75)) / 15
    found = loss_of("boundary-cross-entropy", class_weights=(1.0, 3.0))(logits, labels, weights)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_any_loss_with_a_pixel_term_takes_boundary_weights() -> None:
    logits, labels = two_by_two()
    weights = torch.tensor([[[1.0, 11.0], [1.0, 1.0]]])
    entropy = loss_of("cross-entropy")(logits, labels, weights)
    assert entropy.item() == loss_of("boundary-cross-entropy")(logits, labels, weights).item()
    both = loss_of("dice-ce")(logits, labels, weights)
    assert both.item() == pytest.approx(entropy.item() + loss_of("dice")(logits, labels).item(), abs=1e-6)


def test_regions_of_two_by_two() -> None:
    # classes: background, rim, core; regions: all of it (1, 2) and the core (2)
    labels = torch.tensor([[[0, 1], [2, IGNORED]]])
    p = torch.tensor([[[0.5, 0.75], [0.75, 0.5]], [[0.25, 0.5], [0.75, 0.5]]])[None]  # (1, 2, 2, 2)
    logits = torch.log(p / (1 - p))
    regions = ((1, 2), (2,))
    whole = -(math.log(0.5) + math.log(0.75) + math.log(0.75))
    core = -(math.log(0.75) + math.log(0.5) + math.log(0.75))
    entropy = (whole + core) / 6
    found = loss_of("cross-entropy", 3, regions)(logits, labels)
    assert found.item() == pytest.approx(entropy, abs=1e-6)
    # whole: overlap 1.5, p² 0.25 + 2 * 0.5625, target 2; core: overlap 0.75, p² 0.0625 + 0.25 + 0.5625, target 1
    dice = 1 - ((3 + 1) / (1.375 + 2 + 1) + (1.5 + 1) / (0.875 + 1 + 1)) / 2
    assert loss_of("dice-ce", 3, regions)(logits, labels).item() == pytest.approx(entropy + dice, abs=1e-6)
    # generalised: weights 1 / 2² and 1; overlaps 1.5 and 0.75; sums 2 + 2 and 1.5 + 1
    generalised = 1 - 2 * (1.5 / 4 + 0.75) / (4 / 4 + 2.5)
    assert loss_of("generalised-dice", 3, regions)(logits, labels).item() == pytest.approx(generalised, abs=1e-6)
    # (1 - p of the truth)²: whole 0.25, 0.0625, 0.0625; core 0.0625, 0.25, 0.0625
    focal = 2 * -(0.25 * math.log(0.5) + 2 * 0.0625 * math.log(0.75)) / 6
    assert loss_of("focal", 3, regions)(logits, labels).item() == pytest.approx(focal, abs=1e-6)


def test_weights_of_regions_by_hand() -> None:
    logits, labels = torch.zeros(1, 2, 1, 1), torch.tensor([[[2]]])
    logits[0, 1] = math.log(3)  # p = 0.75 of the core, 0.5 of the whole
    found = loss_of("cross-entropy", 3, ((1, 2), (2,)), class_weights=(1.0, 3.0))(logits, labels)
    assert found.item() == pytest.approx((LN2 - 3 * math.log(0.75)) / 4, abs=1e-6)


def test_absent_classes_do_not_count_in_dice() -> None:
    # only class 0 is there; class 1 must not add its own Dice of 1 / (p² + 1)
    loss = loss_of()(logits_of((0.8, 0.2)), torch.tensor([[[0]]]))
    assert loss.item() == pytest.approx(-math.log(0.8) + 1 - (2 * 0.8 + 1) / (0.64 + 1 + 1), abs=1e-6)
    loss = loss_of("generalised-dice")(logits_of((0.8, 0.2)), torch.tensor([[[0]]]))
    assert loss.item() == pytest.approx(1 - 2 * 0.8 / (0.8 + 1), abs=1e-6)
    # no region is there: nothing to overlap with
    nothing = loss_of("dice", 3, ((1, 2), (2,)))(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert nothing.item() == 0.0


def test_dice_over_the_batch_and_over_each_image() -> None:
    logits = logits_of((0.9, 0.1), (0.4, 0.6), (0.7, 0.3), (0.2, 0.8))
    labels = torch.tensor([[[0, 1, 0, 1]]])
    halves = logits.reshape(1, 2, 2, 2).permute(2, 1, 0, 3), labels.reshape(2, 1, 2)
    assert loss_of("dice")(*halves).item() == pytest.approx(loss_of("dice")(logits, labels).item(), abs=1e-6)
    apart = [loss_of("dice")(halves[0][i : i + 1], halves[1][i : i + 1]).item() for i in (0, 1)]
    each = loss_of("dice", batch_dice=False)(*halves).item()
    assert each == pytest.approx(sum(apart) / 2, abs=1e-6)
    assert abs(each - loss_of("dice")(logits, labels).item()) > 1e-3
    halves[1][1] = IGNORED  # an image without labels does not count as one
    assert loss_of("dice", batch_dice=False)(*halves).item() == pytest.approx(apart[0], abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_prediction_costs_nothing(name: str) -> None:
    labels = torch.tensor([[[0, 1], [1, IGNORED]]])
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0] = torch.tensor([[40.0, -40.0], [-40.0, 3.0]])
    assert loss_of(name)(logits, labels, weights_for(name, labels)).item() == pytest.approx(0.0, abs=1e-6)


# held against MONAI and torch, where everything is labelled


def test_against_monai_and_torch_on_labelled_images() -> None:
    logits, labels = random_batch()
    target, milletari = one_hot(labels), {"squared_pred": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
    weight = torch.tensor([1.0, 2.0, 0.5])
    expected = {
        "dice": DiceLoss(softmax=True, batch=True, **milletari)(logits, target),
        "generalised-dice": GeneralizedDiceLoss(softmax=True, batch=True, smooth_nr=0, smooth_dr=0)(logits, target),
        "cross-entropy": F.cross_entropy(logits, labels.long()),
        "focal": 3 * FocalLoss(use_softmax=True)(logits, target),  # MONAI divides by the classes as well
        "dice-ce": DiceCELoss(softmax=True, batch=True, **milletari)(logits, target),
    }
    expected["dice-focal"] = expected["dice"] + expected["focal"]
    for name, value in expected.items():
        assert loss_of(name, 3)(logits, labels).item() == pytest.approx(value.item(), abs=1e-6), name
    weighted = F.cross_entropy(logits, labels.long(), weight=weight)
    found = loss_of("cross-entropy", 3, class_weights=tuple(weight.tolist()))(logits, labels)
    assert found.item() == pytest.approx(weighted.item(), abs=1e-6)
    each = DiceLoss(softmax=True, **milletari)(logits, target)
    assert loss_of("dice", 3, batch_dice=False)(logits, labels).item() == pytest.approx(each.item(), abs=1e-6)
    no_focus = loss_of("focal", 3, focal_gamma=0.0)(logits, labels)
    assert no_focus.item() == pytest.approx(expected["cross-entropy"].item(), abs=1e-6)


def test_regions_against_monai_and_torch_on_labelled_images() -> None:
    logits, labels = random_batch(classes=3, outputs=2)
    target = torch.stack([labels > 0, labels == 2], dim=1).float()
    regions = ((1, 2), (2,))
    expected = {
        "dice": DiceLoss(sigmoid=True, batch=True, squared_pred=True, smooth_nr=1, smooth_dr=1)(logits, target),
        "cross-entropy": F.binary_cross_entropy_with_logits(logits, target),
        "focal": FocalLoss()(logits, target),
    }
    for name, value in expected.items():
        assert loss_of(name, 3, regions)(logits, labels).item() == pytest.approx(value.item(), abs=1e-6), name


def test_large_images_do_not_drown_generalised_dice_in_smoothing() -> None:
    # 262144 px, all of one class, p = 0.5 everywhere: 1 - 2 * 0.5 / 1.5
    loss = loss_of("generalised-dice")(torch.zeros(1, 2, 512, 512), torch.zeros(1, 512, 512, dtype=torch.uint8))
    assert loss.item() == pytest.approx(1 / 3, abs=1e-5)


# blind to what nobody labelled


@pytest.mark.parametrize("regions", [(), ((1, 2), (2,))])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_have_no_influence(name: str, batch_dice: bool, regions: tuple[tuple[int, ...], ...]) -> None:
    logits, labels = random_batch(known=0.6, outputs=len(regions) or 3)
    weights, ignored = weights_for(name, labels), labels == IGNORED
    criterion = loss_of(name, 3, regions, batch_dice=batch_dice)

    def evaluate(values: torch.Tensor, importance: torch.Tensor | None) -> tuple[float, torch.Tensor]:
        values = values.clone().requires_grad_()
        loss = criterion(values, labels, importance)
        loss.backward()
        assert values.grad is not None
        return loss.item(), values.grad.permute(0, 2, 3, 1)

    loss, gradient = evaluate(logits, weights)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored].abs().sum(dim=1) > 0).all()
    for value in (-1e4, 7.0, math.inf, math.nan):
        changed = logits.clone()
        changed.permute(0, 2, 3, 1)[ignored] = value
        if weights is not None:
            weights[ignored] = value
        other, other_gradient = evaluate(changed, weights)
        assert other == loss
        assert torch.equal(other_gradient, gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_no_labelled_pixel_gives_zero_and_zero_gradient(name: str) -> None:
    logits = torch.full((1, 2, 3, 3), math.inf, requires_grad=True)
    labels = torch.full((1, 3, 3), IGNORED, dtype=torch.uint8)
    loss = loss_of(name)(logits, labels, weights_for(name, labels))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_only_classes_without_weight_give_zero() -> None:
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    loss = loss_of("cross-entropy", class_weights=(0.0, 1.0))(logits, torch.zeros(1, 2, 2, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    # 131072 px: sums far beyond 65504, the largest float16, and beyond the 8 bits of bfloat16
    generator = torch.Generator().manual_seed(0)
    half = (60 * torch.randn(2, 2, 256, 256, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, 2, (2, 256, 256), generator=generator, dtype=torch.uint8)
    weights = weights_for(name, labels)
    with torch.autocast("cpu", dtype if dtype == torch.bfloat16 else torch.float16):
        loss = loss_of(name)(half, labels, weights)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == loss_of(name)(half.detach().float(), labels, weights).item()
    assert half.grad is not None
    assert torch.isfinite(half.grad).all()


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "hinge"}, "unknown loss 'hinge'; expected one of dice-ce, "),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"class_weights": (0.0, 0.0)}, "not all 0"),
        ({"class_weights": (1.0, math.nan)}, "class_weights"),
        ({"name": "dice", "class_weights": (1.0, 2.0)}, "class_weights with the loss 'dice'"),
        ({"focal_gamma": 0.5}, "focal_gamma 0.5; expected 0, or 1 and more"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossSettings(**settings)


def test_settings_come_from_toml() -> None:
    read = from_mapping(LossSettings, {"name": "focal", "class_weights": [1, 2]}, "[loss]")
    assert read == LossSettings("focal", (1.0, 2.0))
    with pytest.raises(ConfigError, match=r"\[loss\]: name is 'hinge'; expected one of 'dice-ce'"):
        from_mapping(LossSettings, {"name": "hinge"}, "[loss]")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "a loss for 1 classes"),
        ({"classes": 3, "regions": ((1, 2), ())}, "different numbers from 1 to 2"),
        ({"classes": 3, "regions": ((1, 3),)}, r"region of the classes \(1, 3\)"),
        ({"classes": 3, "regions": ((0, 1),)}, r"region of the classes \(0, 1\)"),
        ({"classes": 3, "regions": ((1, 1),)}, r"region of the classes \(1, 1\)"),
        ({"classes": 3, "class_weights": (1.0, 2.0)}, "2 class weights for 3 classes"),
        ({"classes": 3, "class_weights": (1.0, 2.0, 3.0), "regions": ((1, 2), (2,))}, "3 class weights for 2 regions"),
    ],
)
def test_losses_that_cannot_be_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss_of(**options)


def test_input_that_does_not_fit() -> None:
    logits, labels = random_batch()
    with pytest.raises(TrainingError, match=r"expected \(B, 2, H, W\) with \(B, H, W\)"):
        loss_of(classes=2)(logits, labels)
    with pytest.raises(TrainingError, match="labels of shape"):
        loss_of(classes=3)(logits, labels[:, :3])
    with pytest.raises(TrainingError, match="label 2 in a batch; expected 0 to 1, or 255"):
        loss_of(classes=2)(logits[:, :2], labels)
    with pytest.raises(TrainingError, match="without a weight for each pixel"):
        loss_of("boundary-cross-entropy", 3)(logits, labels)
    with pytest.raises(TrainingError, match="pixel weights with the loss generalised-dice"):
        loss_of("generalised-dice", 3)(logits, labels, torch.ones(labels.shape))
    with pytest.raises(TrainingError, match="weights of shape"):
        loss_of("focal", 3)(logits, labels, torch.ones(2, 6))


def test_the_settings_load_no_torch() -> None:
    code = (
        "import sys, pyhisto.losses, pyhisto.losses.settings; assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
