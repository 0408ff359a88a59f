"""Readers, embedded scenes, domain shifts, and what a stage trains on."""
