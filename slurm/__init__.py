"""The experiment's stage graph as chained Slurm jobs."""
