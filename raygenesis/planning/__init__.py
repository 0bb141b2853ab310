"""What stages need and cost, and whether settings fit the scans, before anything runs."""
