"""Published numbers, one YAML file per paper, each row with its table and where it was read."""
