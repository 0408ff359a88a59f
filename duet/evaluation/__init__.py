"""Run a detector over a domain, average precision, and the indices."""
