"""A live page over a folder of runs that may still be written: `zolab dashboard RUNS`."""
