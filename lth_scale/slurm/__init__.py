"""Rounds as chained job arrays: submission, what each job does, what the queue says. The engine is Slurm."""
