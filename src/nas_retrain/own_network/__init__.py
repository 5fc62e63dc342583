"""The rules applied to a network of one's own."""
