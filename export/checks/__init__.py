"""Whether an exported graph computes what its module computes."""
