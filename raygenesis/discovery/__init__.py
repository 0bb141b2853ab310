"""Which patients are alike, and the anatomical patterns that recur among them."""
