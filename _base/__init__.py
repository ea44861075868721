"""What every part stands on: exit codes, whole files, strict JSON, the cache folder, lazy names."""
