"""Losses of incremental training: pure functions of tensors."""
