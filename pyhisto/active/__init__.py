"""Which regions of unlabelled slides a person should look at next. Importing this package loads nothing heavy."""
