"""Models of others in their own folders: MONAI bundles of the model zoo's layout and WSInfer models.

Nothing in their configurations is executed, and nothing is downloaded. A TorchScript file is code all the same, which
runs when the model does.
"""
