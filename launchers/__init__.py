"""Sweeps: which cells are still to be run, and the processes or SLURM jobs that run them."""
