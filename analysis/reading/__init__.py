"""Readers of logs: run folders, offline `.wandb` files, the online API; one table per run."""
