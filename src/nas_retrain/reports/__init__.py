"""What all reports share."""
