"""What makes a stage reusable and resumable."""
