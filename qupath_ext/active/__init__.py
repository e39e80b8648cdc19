"""The active-learning loop: regions are proposed, a person corrects them in QuPath, a model learns, and again.

::

    <first project>/qupath_ext/active/<loop>/loop.json            settings, projects, frozen split of the patients
    <first project>/qupath_ext/active/<loop>/rounds/NN/           one round:
        round.json             what was done and when; which steps are behind it
        proposals.parquet      the regions that were proposed (GeoParquet, the frame that QuPath shows)
        predictions.parquet    what the model said inside them (a path-object table of all images)
        corrections.parquet    what a person did to that (GeoParquet, the frame that QuPath shows)
        training.json, model/  what the training found, and the bundle that came of it
    <first project>/qupath_ext/active/<loop>/rounds/.rolled-back-*/  rounds that were taken back

Every file is put in place whole; a step that was interrupted goes on when it is called again. :mod:`.loop` keeps the
state. :mod:`.propose` chooses regions of :mod:`.slides` by what :mod:`.view` sees of them, of which :mod:`.memory`
keeps what stays the same, :mod:`.predict` fills them, and :mod:`.write` puts them into images. :mod:`.answers` reads
what was made of them, :mod:`.collect` says what a person did (:mod:`.corrections`), :mod:`.annotators` compares two
persons, and :mod:`.truth` says what that means for :mod:`.training`, :mod:`.disputes` for any other training.
:mod:`.rollback` goes back. :mod:`.status` says where a loop stands; :mod:`.simulate` goes through one with annotations
that are there.
"""
