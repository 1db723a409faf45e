"""One file per initialisation; what one is stands in :mod:`tsugiki.pretrain.conversion.initialisation`."""
