"""How gpt2-mini is made: its text, its training, what it can do, and the folder it is stored in."""
