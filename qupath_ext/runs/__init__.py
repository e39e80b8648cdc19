"""What this program wrote, by which run, what a person changed since, and how to take it back.

::

    <project>/qupath_ext/runs/<run id>/run.json                    command, settings, models, versions, images, counts
    <project>/qupath_ext/runs/<run id>/<entry id>.parquet          the objects that were written (GeoParquet)
    <project>/qupath_ext/runs/<run id>/replaced/<entry id>.parquet the objects of earlier runs that made way for them
    <project>/qupath_ext/runs/<run id>/before/<entry id>.parquet   the ids of all other objects at that moment
    <project>/qupath_ext/runs/<run id>/theirs/<entry id>.json      ids of objects that were a person's by then

Objects belong to the run that wrote their id until a person changes them; then they are that person's for ever.
:mod:`.record` keeps the records, :mod:`.compare` tells edits from rounding, :mod:`.ownership` says what may be replaced
and writes, :mod:`.diff` and :mod:`.undo` do what their names say.
"""
