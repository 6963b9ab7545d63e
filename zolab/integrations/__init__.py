"""Zeroth-order optimizers inside training loops of others: one file per library."""
