"""What creating, updating and deleting an object of each kind reads, claims and writes: the transactions T0 to T5."""
