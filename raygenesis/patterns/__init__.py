"""The sharded store of labelled anatomical patterns."""
