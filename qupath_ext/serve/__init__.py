"""The worker: does the jobs of QuPath's scripts in a process that has everything loaded.

It listens on this computer only. Where, and the token that every request needs, stand in a file that only the user
can read (:func:`qupath_ext.userstate.worker_file`). A request names the folder of a job (:mod:`qupath_ext.live.job`),
which has to be inside a project that is allowed, and so has the project that the job names.

:mod:`.folders` says what is allowed, :mod:`.jobs` keeps the jobs in order, :mod:`.server` understands requests,
:mod:`.models` keeps models, :mod:`.warmup` makes the first job as fast as the next, :mod:`.worker` puts it together,
:mod:`.client` asks it.
"""
