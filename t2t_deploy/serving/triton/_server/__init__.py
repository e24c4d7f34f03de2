"""Python models that run inside Triton: copied into a repository, never imported from here."""
