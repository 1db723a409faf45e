"""Studies: many runs of one experiment that differ in a few values, and what they say together.

``config`` is the study's file, ``design`` makes trials of it, ``trials`` checks them and finds what they share,
``preview`` says what they will cost, ``local`` runs them on one machine and ``cluster`` on Slurm;
``results`` reads what they measured, ``page`` shows it.
"""
