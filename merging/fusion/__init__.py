"""Fusing fine-tuned classifiers and language models: data, models, methods and results around the merging core."""
