"""Experiment tracking: parent run = experiment, child run = stage, in every tracker that ``tracking.trackers`` names.

``config`` is the section of the configuration, ``tracker`` what a tracker has to do, ``trackers/`` holds one file
for each, ``runs`` opens the runs of a stage in all of them and forgives those that fail later.
"""
