"""Pretraining: corruptions, pretext tasks, networks and the training run itself."""
