"""The search over λ, K and C on one pattern store."""
