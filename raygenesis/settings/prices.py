"""Prices of a cluster."""

from __future__ import annotations

from pydantic import Field

from raygenesis.settings.section import NonNegative, Section


class PriceSettings(Section):
    """What the cluster costs, in any currency; `plan` and `status` show costs once a price is given."""

    cpu_hour: NonNegative | None = Field(None, description="Price of a CPU core for an hour. When null, free.")
    gpu_hour: NonNegative | None = Field(None, description="Price of a GPU for an hour. When null, free.")
    gib_month: NonNegative | None = Field(None, description="Price of a GiB of storage for a month. When null, free.")

    def of(self, core_seconds: float, gpu_seconds: float, gib: float = 0.0) -> float | None:
        """The cost of so many seconds of cores and of GPUs, and of GiB stored for a month; None without any price."""
        prices = (self.cpu_hour, self.gpu_hour, self.gib_month)
        amounts = (core_seconds / 3600, gpu_seconds / 3600, gib)
        if prices == (None, None, None):
            return None
        return sum(amount * (price or 0.0) for amount, price in zip(amounts, prices, strict=True))
