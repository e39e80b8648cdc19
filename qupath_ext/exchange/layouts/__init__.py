"""The truth of public data sets, in the layouts in which they come, as shapes with classes.

:mod:`.classmap` says which class a value is, :mod:`.arrays` reads the files of masks, :mod:`.outlines` makes polygons
of them, and :mod:`.masks`, :mod:`.points` and :mod:`.coco` are the layouts: each has the names of the images it knows
and reads the :class:`.truth.Truth` of one.
"""
