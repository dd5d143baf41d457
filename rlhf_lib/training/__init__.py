"""Supervised training: SFT, reward models, classifiers."""
