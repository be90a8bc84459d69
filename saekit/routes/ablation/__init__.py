"""What happens to a target when edges are removed or carry something else."""
