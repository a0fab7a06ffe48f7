"""Whether a verb's numbers can be used; said before anything is read or computed."""

import math
from collections.abc import Iterable
from typing import Any


def number_faults(verb: Any, positive: Iterable[str] = (), not_negative: Iterable[str] = ()) -> list[str]:
    """One line for each of these fields that is not finite, negative, or (of `positive`) zero; None is a default and always right."""
    faults = []
    for names, least in ((positive, "above 0"), (not_negative, "at least 0")):
        for name in names:
            value = getattr(verb, name)
            if value is not None and not (math.isfinite(value) and (value > 0 or (value == 0 and least == "at least 0"))):
                faults.append(f"--{name.replace('_', '-')} {value}: must be a number {least}")
    return faults
