"""``distillation``: the mean first, then input rows trained on text of the corpus to stand for the base tokens.

The training is :mod:`tsugiki.pretrain.conversion.distill`; its settings are ``graft.distillation``.
"""

from __future__ import annotations

from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS
from tsugiki.pretrain.conversion.initialise.mean import mean

INITIALISATIONS.register("distillation", row_by_row=True, learns_from_corpus=True)(mean)
