"""Methods that do not factor into parts: one file each."""
