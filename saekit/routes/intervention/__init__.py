"""What happens to the prediction when concepts are held or swapped."""
