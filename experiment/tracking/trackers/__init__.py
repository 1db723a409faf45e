"""One file a tracker; see :mod:`tsugiki.experiment.tracking.tracker`."""
