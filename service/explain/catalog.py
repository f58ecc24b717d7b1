"""Which explanations there are, and which of them a model family can give."""

from __future__ import annotations

from collections.abc import Collection

from service.errors import CannotExplain
from service.explain.blocks import BlockMaps
from service.explain.rollout import Rollout
from service.types import Capture, Explainer

EXPLANATIONS: dict[str, Explainer] = {"rollout": Rollout(), "blocks": BlockMaps()}


def offered(captures: Collection[Capture]) -> list[str]:
    """The names of the explanations that a family with these captures can give."""
    return [name for name, explainer in EXPLANATIONS.items() if explainer.needs in captures]


def require(explainer: Explainer, captures: Collection[Capture], model: str) -> None:
    """Raises CannotExplain unless the model's captures cover what the explainer needs."""
    if explainer.needs not in captures:
        names = ", ".join(offered(captures)) or "nothing"
        raise CannotExplain(
            f"{model} can't give {type(explainer).__name__}: its family captures no {explainer.needs.value}. "
            f"It can explain: {names}."
        )
