"""What a collection is judged by, and what is left of it."""
