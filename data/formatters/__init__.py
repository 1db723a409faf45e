"""What text becomes: extraction from HTML, translation pairs, masked personal data."""
