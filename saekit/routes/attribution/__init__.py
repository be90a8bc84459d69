"""What each head and edge carries to a target, by identities that add up exactly."""
