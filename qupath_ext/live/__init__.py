"""QuPath asks, this program answers: a script in QuPath hands over the open image, and gets back what to do to it.

A job is a folder. The script writes ``job.json`` (last) and ``objects.geojson``; :func:`qupath_ext.live.tasks.run_job`
answers with ``answer.json`` (last) and ``add.geojson``, and says in ``progress.jsonl`` how far it is. A file ``cancel``
stops it. Neither the data file of the image nor the project file is written: QuPath puts the answer into the image, and
saves. :mod:`.job` has the files, :mod:`.liveproject` makes an image of a project of them that analyses cannot tell from
others, :mod:`.settings` are those of a project, :mod:`.tasks` is what can be asked for.
"""
