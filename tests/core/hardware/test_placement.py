"""Which layers go to a GPU of so many bytes. Pure arithmetic."""

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.core.hardware.placement import Needs, place

NEEDS = Needs(layers=(10, 20, 30), cache=5, always={"its head": 7, "reserve": 3})
WHOLE = 10 + (10 + 20 + 30) + 3 * 5


@pytest.mark.parametrize(
    ("budget", "device"),
    [
        (WHOLE + 1, 3),
        (WHOLE, 3),
        (WHOLE - 1, 2),
        (10 + 55 + 5, 2),
        (10 + 55 + 4, 1),
        (45, 1),
        (44, 0),
        (10, 0),
    ],
)
def test_as_many_layers_as_fit_go_to_the_device_and_the_lowest_stay(budget, device):
    placement = place(NEEDS, budget)
    assert (placement.host, placement.device) == (3 - device, device)
    assert placement.bytes == 10 + sum((10, 20, 30)[3 - device :]) + 5 * device <= budget


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_wish_that_fits_is_granted_exactly(layers):
    placement = place(NEEDS, WHOLE, layers)
    assert (placement.device, placement.host) == (layers, 3 - layers)
    assert f"{layers} of 3 layers" in str(placement)


def test_a_wish_that_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ConfigError, match=r"gpu_layers = 3 takes .* 2 layers fit"):
        place(NEEDS, WHOLE - 1, 3)


@pytest.mark.parametrize("layers", [-2, 4])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(ConfigError, match=f"gpu_layers = {layers}, the model has 3 layers"):
        place(NEEDS, WHOLE, layers)


@pytest.mark.parametrize("budget", [9, 0, -1])
def test_a_device_without_room_for_the_head_is_refused_by_name(budget):
    with pytest.raises(ConfigError, match=r"without a single layer .*its head .*, reserve "):
        place(NEEDS, budget)


def test_a_model_of_no_layers_needs_only_what_is_always_there():
    assert place(Needs(layers=(), cache=5, always={"its head": 7}), 7).bytes == 7
