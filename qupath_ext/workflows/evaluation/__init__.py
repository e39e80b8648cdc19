"""How good is it: two sources compared on the images of a project.

:mod:`.sources` gives the objects of each side, :mod:`.areas` says where they are compared, :mod:`.cells` and
:mod:`.tissue` count on one image, :mod:`.compare` goes over all of them, :mod:`.figures` makes figures with intervals
of the counts, :mod:`.pictures` shows the worst cases, and :mod:`.writing` puts page and table on disk.
"""
