"""Prices of a cluster."""

from __future__ import annotations

from pydantic import Field

from raygenesis.settings.section import NonNegative, Section


class PriceSettings(Section):
    """What the cluster costs, in whatever currency, for `plan` and `status`."""

    cpu_hour: NonNegative | None = Field(None, description="A core for an hour. Without any price no costs are told.")
    gpu_hour: NonNegative | None = Field(None, description="A GPU for an hour.")
    gib_month: NonNegative | None = Field(None, description="A GiB stored for a month.")

    def of(self, core_seconds: float, gpu_seconds: float, gib: float = 0.0) -> float | None:
        """What so much costs; None where no price is given."""
        prices = (self.cpu_hour, self.gpu_hour, self.gib_month)
        amounts = (core_seconds / 3600, gpu_seconds / 3600, gib)
        if prices == (None, None, None):
            return None
        return sum(amount * (price or 0.0) for amount, price in zip(amounts, prices, strict=True))
