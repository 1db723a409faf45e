"""Building blocks of HTML pages."""
