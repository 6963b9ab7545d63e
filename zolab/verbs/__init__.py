"""Verbs of the command line, one file each; `zolab.cli` calls them by name."""
