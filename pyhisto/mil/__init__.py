"""Slide labels from bags of tile features: tables of labels, folds, training, figures, models on disk."""
