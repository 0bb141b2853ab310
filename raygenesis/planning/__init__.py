"""What stages need and cost, before they run."""
