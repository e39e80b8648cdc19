"""Weak segmentation: a classifier of tiles that is learnt from labels of slides (Lerousseau et al. 2020)."""
