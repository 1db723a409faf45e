"""Preference tuning: losses over pairs of answers, the reference they are compared with."""
