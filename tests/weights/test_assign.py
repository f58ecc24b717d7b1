import pytest
import torch
from torch import nn

from service.errors import CheckpointError
from service.weights.assign import assign


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.rand_like(tensor.float()).to(tensor.dtype)
        for name, tensor in model().state_dict().items()
    }


def test_every_parameter_and_buffer_is_copied() -> None:
    target, source = model(), state()
    assign(target, source)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source[name]), name
    source["0.weight"].zero_()
    assert target.state_dict()["0.weight"].any(), "a copy, not a view"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), "don't fit the Sequential: missing: 0.bias."),
        (lambda s: s.update({"2.bias": torch.ones(1)}), "left over: 2.bias"),
        (
            lambda s: s.update({"0.weight": torch.ones(5, 2)}),
            r"0.weight \(expected \(5, 3\), found \(5, 2\)\)",
        ),
        (lambda s: s.update({"1.running_var": torch.full((5,), torch.inf)}), "not finite: 1.running_var"),
        (lambda s: s.update({f"x{i}": torch.ones(1) for i in range(13)}), "x0, .*, x9 and 3 more"),
        (lambda s: s.clear() or s.update(y=torch.ones(1)), "missing: 0.weight, .*; left over: y"),
    ],
)
def test_nothing_is_copied_unless_everything_fits(change, message) -> None:
    target, source = model(), state()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    change(source)
    with pytest.raises(CheckpointError, match=message):
        assign(target, source)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name]), name
