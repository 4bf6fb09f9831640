"""Files that people write: desired state in YAML, settings in TOML."""
