"""Names with typed holes."""

import pytest

from plait.weights.rules import rule
from plait.weights.templates import Template


def test_holes_have_types():
    assert Template("a.{i}.{w}").match("a.12.bias") == {"i": "12", "w": "bias"}
    for other in ("a.x.bias", "a.1.scale", "a.01.bias", "a..bias", "b.1.bias", "a.1.bias.", "aX1.bias"):
        assert Template("a.{i}.{w}").match(other) is None
    part = Template("{part:up|down}.{i}.{i}")
    assert part.match("up.3.3") == {"part": "up", "i": "3"}
    assert part.match("up.3.4") is None and part.match("left.3.3") is None
    assert part.fill({"part": "down", "i": "5"}) == "down.5.5"


def test_a_hole_without_a_type_and_a_hole_that_is_lost_are_errors():
    with pytest.raises(ValueError, match=r"hole \{layer\} has no type"):
        Template("a.{layer}")
    with pytest.raises(ValueError, match="must have the same holes"):
        rule("a.{i}.{w}", "b.{i}")
