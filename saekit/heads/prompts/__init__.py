"""What heads do on prompts: measured, compared with what their weights say, and removed."""
