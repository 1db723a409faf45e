"""One file per model family; what a family is stands in :mod:`tsugiki.experiment.model.family`."""
