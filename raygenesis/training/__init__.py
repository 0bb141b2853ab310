"""The engine that trains: batches in a seeded order, the loop, its checkpoints and records, Ray Train around it."""
