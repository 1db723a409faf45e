"""What a run will need, which layouts it can have, and its learning-rate schedule."""
