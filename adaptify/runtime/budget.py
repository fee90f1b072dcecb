"""A budget of compute: how much a network may spend on one sample, on average."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adaptify.errors import UsageError
from adaptify.text import percent, quantity

MOST = 2.0
"""The largest fraction that makes sense: gates cost MACs of their own, but not as much as the network."""

_LEAST_MACS = 1000  # a number in between is a slip: 45 for 0.45, or for 45 million
_HINT = "Give the fraction to keep (0.6 keeps 60%), or the MACs for a sample (45e6)."


@dataclass(frozen=True)
class Budget:
    """Mean MACs per sample, as a fraction of the network's or as such.

    Attributes:
        amount: The fraction to keep, in (0, 2]; or a number of MACs.
        absolute: Whether it is a number of MACs.

    >>> str(Budget(0.6)), str(Budget(45e6, absolute=True))
    ('60.0% of the MACs', '45.0 M MACs')
    """

    amount: float
    absolute: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no budget.

        Raises:
            UsageError: It is no positive number, or a fraction of more than 2.
        """
        if not (math.isfinite(self.amount) and self.amount > 0 and (self.absolute or self.amount <= MOST)):
            raise UsageError(
                f"a budget of {self.amount:g} is no {'number' if self.absolute else 'fraction'} of MACs",
                _HINT,
            )

    @classmethod
    def of(cls, value: float) -> Budget:
        """The budget that a plain number is: up to 2 a fraction, from 1,000 on MACs.

        Raises:
            UsageError: It is neither.

        >>> Budget.of(0.6), Budget.of(45e6)
        (Budget(amount=0.6, absolute=False), Budget(amount=45000000.0, absolute=True))
        """
        try:
            amount = float(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"a budget of {value!r} is no number", _HINT) from error
        return cls(amount, absolute=amount >= _LEAST_MACS)

    def fraction(self, base_macs: float) -> float:
        """The budget as a fraction of `base_macs`, the MACs of the network without gates for one sample."""
        return self.amount / base_macs if self.absolute else self.amount

    def __str__(self) -> str:
        return f"{quantity(self.amount)} MACs" if self.absolute else f"{percent(self.amount)} of the MACs"
