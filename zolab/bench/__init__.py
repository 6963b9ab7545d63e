"""The parts of `zolab bench`: each module has a `main` that takes arguments, prints and writes."""
